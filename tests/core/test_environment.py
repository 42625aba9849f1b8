"""Environment variables: what can't be is refused with the rule, and processes of srun never train side by side."""

import pytest

from bigbatch.core.checks import UserError
from bigbatch.core.environment import VARIABLES, check_environment, job_names, join_launcher, names_of_a_restart, own_rank, read_variable

SLURM = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "17", "SLURM_STEP_NUM_NODES": "2"}
SLURM["SLURM_STEP_TASKS_PER_NODE"] = "2(x2)"
MPI = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "3"}
MEET = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *[(name, text) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") for text in ("x", "-1", "1.5", "٣", "1" * 5000)],
        ("WORLD_SIZE", "0"),
        *[("BIGBATCH_TIMEOUT_S", text) for text in ("abc", "0", "-3", "nan", "inf")],
        ("BIGBATCH_STORE", "localhost:6379"),
        ("BIGBATCH_FORCE", "yes"),
        ("BIGBATCH_DEBUG", "true"),
        ("BIGBATCH_LAUNCHER", "me"),
        ("BIGBATCH_NUM_WORKERS", "0"),
        ("MASTER_PORT", "x"),
    ],
)
def test_what_cant_be_is_refused_with_the_rule(name, text):
    rule = next(variable.rule for variable in VARIABLES if variable.name == name)
    with pytest.raises(UserError, match=f"^{name}=.*: must be {rule}; correct the environment variable, or unset it$") as refused:
        check_environment({name: text})
    assert len(str(refused.value)) < 250


def test_what_is_not_set_or_empty_is_the_default():
    assert read_variable("RANK", 7, {}) == read_variable("RANK", 7, {"RANK": ""}) == 7
    assert read_variable("BIGBATCH_TIMEOUT_S", environment={"BIGBATCH_TIMEOUT_S": "1.5"}) == 1.5


def test_a_name_that_nothing_reads_is_warned_about():
    with pytest.warns(UserWarning, match="unknown environment variable 'BIGBATCH_TIMEOUT': did you mean 'BIGBATCH_TIMEOUT_S'"):
        check_environment({"BIGBATCH_TIMEOUT": "3", "BIGBATCH_TEST_THREADS": "1"})


@pytest.mark.parametrize("environment", [SLURM, MPI])
def test_processes_that_would_not_meet_are_refused_with_the_line_to_type(environment):
    with pytest.raises(
        UserError, match=r"not by torchrun: each would train by itself; start one torchrun a node \((srun|mpirun) .*torchrun"
    ):
        join_launcher(dict(environment))
    with pytest.raises(UserError, match="--nnodes=2 .*--rdzv-id=17"):
        join_launcher(dict(SLURM))


@pytest.mark.parametrize(("environment", "worker"), [(SLURM, ("1", "4", "1", "2")), (MPI, ("2", "3", "0", "3"))])
def test_processes_that_know_where_to_meet_join(environment, worker):
    joining = {**environment, **MEET}
    join_launcher(joining)
    assert (joining["RANK"], joining["WORLD_SIZE"], joining["LOCAL_RANK"], joining["LOCAL_WORLD_SIZE"]) == worker


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**SLURM, "RANK": "0", "WORLD_SIZE": "2"},  # of torchrun
        {**SLURM, "WORLD_SIZE": "1"},  # alone on purpose
        {**SLURM, "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "17"},  # the batch script itself
    ],
)
def test_others_are_left_as_they_are(environment):
    after = dict(environment)
    join_launcher(after)
    assert after == environment


def test_own_rank_is_known_without_torchrun():
    assert [own_rank(e) for e in ({}, SLURM, MPI, {**SLURM, "RANK": "3"}, {"RANK": "x"})] == [0, 1, 2, 3, 0]


def test_a_scheduler_s_job_is_known_again_once_it_is_requeued():
    assert job_names({"BIGBATCH_JOB": "a", "PBS_JOBID": "8.host"}) == ("BIGBATCH_JOB=a", "PBS_JOBID=8.host")
    assert names_of_a_restart({"BIGBATCH_JOB": "a", "SLURM_JOB_ID": "17"}) == ("BIGBATCH_JOB=a",)
    assert names_of_a_restart({"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "1"}) == ("SLURM_JOB_ID=17",)
