"""Environment variables: those that bigbatch reads, in one table, and those by which a launcher says which worker a process is.

A value is checked where it is read; `check_environment` checks all of them at the start of the program.
"""

import os
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bigbatch.core.checks import Elsewhere, UserError, unknown

DATA = "BIGBATCH_DATA"
CACHE = "BIGBATCH_CACHE"
JOB = "BIGBATCH_JOB"
STORE = "BIGBATCH_STORE"
TIMEOUT = "BIGBATCH_TIMEOUT_S"
FORCE = "BIGBATCH_FORCE"
DEVICE = "BIGBATCH_DEVICE"
GOES_ON = "BIGBATCH_GOES_ON"
LAUNCHER = "BIGBATCH_LAUNCHER"
"""Number of the process that started this one; it may be gone before this one can look."""

WAIT_S = 120.0
"""How long a worker waits for the others before it gives up: the time in which a link that fell silent is noticed. A worker that dies is
noticed at once, also by those that wait for a GPU (see `bigbatch.comm.rendezvous.heartbeat`)."""


class Variable(NamedTuple):
    """One that is read.

    Attributes:
        name: Of the variable.
        meaning: What it does; a sentence of the documentation.
        parse: From its text to its value; raises ValueError.
        rule: What a value must be, after "must be".
        by_hand: False for what launchers hand to the workers that they start.
    """

    name: str
    meaning: str
    parse: Callable[[str], Any] = str
    rule: str = "a text"
    by_hand: bool = True


def _whole_number(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise ValueError(text)
    return int(text)


def _positive_number(text: str) -> int:
    if (number := _whole_number(text)) == 0:
        raise ValueError(text)
    return number


def _seconds(text: str) -> float:
    if not 0 < (value := float(text)) < 1e9:
        raise ValueError(text)
    return value


def _switch(text: str) -> bool:
    return {"0": False, "1": True}[text]


def _address_of_redis(text: str) -> str:
    if not re.match(r"(rediss?|unix)://.", text):
        raise ValueError(text)
    return text


VARIABLES = (
    Variable(DATA, "Folder of the data of a task, where `--data` is not given."),
    Variable(CACHE, "Folder for downloads and measured micro-batches; the user's cache folder if unset."),
    Variable(
        TIMEOUT,
        "Seconds that a worker waits for the others before it gives up, and that it may take for a work item of a parameter server; 120 if "
        "unset.",
        _seconds,
        "seconds above zero",
    ),
    Variable(JOB, "Name of the job. The same name goes on with what an earlier start of the job has begun, without `--resume`."),
    Variable(STORE, "Redis server at which workers meet; needs BIGBATCH_JOB.", _address_of_redis, "a URL such as redis://host:6379"),
    Variable(FORCE, "1: as `--force`, take over a folder whose owner on another host has ended.", _switch, "0 or 1"),
    Variable(
        DEVICE, "Device of a run where `--device` is not given: `cpu`, `cuda`, `cuda:1`; a GPU if there is one, else the CPU, if unset."
    ),
    Variable("BIGBATCH_DEBUG", "1: show the traceback of an error.", _switch, "0 or 1"),
    Variable("BIGBATCH_ROLE", "With a parameter server: what this process is, `server:0` or `worker:2`."),
    Variable("BIGBATCH_SERVERS", "With a parameter server: addresses HOST:PORT of all servers, separated by commas."),
    Variable("BIGBATCH_TOKEN", "With a parameter server: a secret that all processes share."),
    Variable("BIGBATCH_NUM_WORKERS", "With a parameter server: how many workers there are.", _positive_number, "a number above zero"),
    Variable(GOES_ON, "1: the command that was typed goes on by itself when it is typed again.", _switch, "0 or 1", by_hand=False),
    Variable(LAUNCHER, "Number of the process that started a worker.", _whole_number, "a process number", by_hand=False),
    Variable("RANK", "Number of a worker, from 0.", _whole_number, "a whole number from 0", by_hand=False),
    Variable("WORLD_SIZE", "How many workers there are.", _positive_number, "a number above zero", by_hand=False),
    Variable("LOCAL_RANK", "Number of a worker on its machine, from 0.", _whole_number, "a whole number from 0", by_hand=False),
    Variable("LOCAL_WORLD_SIZE", "How many workers a machine has.", _positive_number, "a number above zero", by_hand=False),
    Variable("MASTER_PORT", "Port at which workers meet.", _positive_number, "a port number", by_hand=False),
)
_BY_NAME = {variable.name: variable for variable in VARIABLES}


def read_variable(name: str, default: Any = None, environment: Mapping[str, str] = os.environ) -> Any:
    """The value of a variable of the table; the default where it is not set, or empty.

    Raises:
        UserError: If it is set to what it can't be.

    >>> read_variable("RANK", environment={"RANK": "3"})
    3
    >>> read_variable("RANK", environment={"RANK": "x"})
    Traceback (most recent call last):
    bigbatch.core.checks.UserError: RANK=x: must be a whole number from 0; correct the environment variable, or unset it
    """
    text, variable = environment.get(name, ""), _BY_NAME[name]
    if not text:
        return default
    try:
        return variable.parse(text)
    except (ValueError, KeyError):
        raise UserError(f"{name}={text[:100]}: must be {variable.rule}; correct the environment variable, or unset it") from None


def how_to_go_on() -> str:
    """What a person must do for what was stopped to go on, in words. The command line says which of its commands go on by themselves.

    >>> how_to_go_on()
    'continue with --resume'
    """
    return "type the same command again" if goes_on_by_itself() else "continue with --resume"


def goes_on_by_itself() -> bool:
    """Whether this process belongs to a command that goes on by itself when it is typed again."""
    return bool(read_variable(GOES_ON, False))


def timeout_s() -> float:
    """How long a worker may be silent, or a server away.

    Raises:
        UserError: If BIGBATCH_TIMEOUT_S is no such time.
    """
    return float(read_variable(TIMEOUT, WAIT_S))


def check_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Check every variable that is set, and warn about names that nothing reads.

    Raises:
        UserError: If one is set to what it can't be.
    """
    for variable in VARIABLES:
        read_variable(variable.name, environment=environment)
    if LAUNCHER in environment or own_rank(environment):
        return  # said once, not by each worker
    for name in environment:
        if name.startswith("BIGBATCH_") and name not in _BY_NAME and not name.startswith("BIGBATCH_TEST_"):
            warnings.warn(unknown("environment variable", name, [v.name for v in VARIABLES if v.by_hand]), stacklevel=2)


class _Launcher(NamedTuple):
    """How a launcher other than torchrun numbers the processes that it starts."""

    name: str
    rank: str
    world_size: str
    local_rank: str
    local_size: str  # workers of this machine; empty where it is not told


LAUNCHERS = (
    _Launcher("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
    _Launcher("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    _Launcher("MPI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)


def join_launcher(environment: dict[str, str] | os._Environ[str] = os.environ) -> None:
    """Give a process that srun or mpirun has started torchrun's variables, where MASTER_ADDR and MASTER_PORT say where to meet.

    Does nothing for a process that torchrun has started, that is alone, or that WORLD_SIZE=1 says to be alone on purpose.

    Raises:
        UserError: If it is one of several that would not meet: each would train alone, all in one folder.
    """
    if environment.get("RANK") or environment.get("WORLD_SIZE"):
        return
    for launcher in LAUNCHERS:
        if launcher.rank in environment and (number := environment.get(launcher.world_size, "1")) != "1":
            break
    else:
        return
    rank = environment[launcher.rank]
    if not (environment.get("MASTER_ADDR") and environment.get("MASTER_PORT")):
        raise (UserError if rank == "0" else Elsewhere)(
            f"{launcher.rank}={rank} of {number} processes started by {launcher.name}, not by torchrun: each would train by itself; start "
            f"one torchrun a node ({_torchrun(launcher, environment)}), or set MASTER_ADDR and MASTER_PORT, alike for all, to join these "
            "processes, or WORLD_SIZE=1 where each is a run of its own"
        )
    environment["RANK"], environment["WORLD_SIZE"] = rank, number
    environment["LOCAL_RANK"] = environment.get(launcher.local_rank, "0")
    environment["LOCAL_WORLD_SIZE"] = environment.get(launcher.local_size) or _tasks_of_node(environment)


def _tasks_of_node(environment: Mapping[str, str]) -> str:
    """Tasks of Slurm's step on each node, the most of them; 1 where it does not tell.

    >>> _tasks_of_node({"SLURM_STEP_TASKS_PER_NODE": "4(x2),3"}), _tasks_of_node({})
    ('4', '1')
    """
    numbers = re.findall(r"(\d+)(?:\(x\d+\))?(?:,|$)", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return max(numbers, key=int, default="1")


def _torchrun(launcher: _Launcher, environment: Mapping[str, str]) -> str:
    if launcher.name == "srun":
        nodes = environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES", "1")
        start, job = "srun --ntasks-per-node=1", environment.get("SLURM_JOB_ID", "JOB")
    else:
        nodes, start, job = "NODES", "mpirun --map-by ppr:1:node", "JOB"
    where = f"--nnodes={nodes} --nproc-per-node=GPUS --rdzv-backend=c10d --rdzv-id={job} --rdzv-endpoint=FIRST_NODE:29500"
    return f"{start} torchrun {where} -m bigbatch ..."


def own_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Number of this process among those that a launcher has started; 0 where there is none, or where it is no number."""
    for name in ("RANK", *(launcher.rank for launcher in LAUNCHERS)):
        if text := environment.get(name, ""):
            return int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else 0
    return 0


def number_of_workers() -> int:
    """How many processes a launcher has started together; 1 where there is none.

    Raises:
        UserError: If a variable of the launcher is invalid.
    """
    join_launcher()
    return int(read_variable("WORLD_SIZE", 1))


SCHEDULERS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
"""Variables by which schedulers name a job, the same when they start it anew."""


def job_names(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Names of the job that this process belongs to: the user's or the launcher's, and the scheduler's.

    >>> job_names({"BIGBATCH_JOB": "digits", "SLURM_JOB_ID": "17"})
    ('BIGBATCH_JOB=digits', 'SLURM_JOB_ID=17')
    """
    return tuple(f"{name}={environment[name]}" for name in (JOB, *SCHEDULERS) if environment.get(name))


def names_of_a_restart(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Those of `job_names` under which an earlier start of this job may have begun a run: a scheduler's only once it has requeued it."""
    requeued = environment.get("SLURM_RESTART_COUNT", "0") != "0"
    return tuple(name for name in job_names(environment) if name.startswith(f"{JOB}=") or (requeued and name.startswith("SLURM")))
