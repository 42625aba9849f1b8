import os
import signal
import threading
import time
from pathlib import Path

import pytest
from tests.runner import scripts
from tests.runner.scripts import RECIPE, section, write_script

from bigbatch import Interrupted, Recipe, UserError
from bigbatch.core.checks import RunFailed
from bigbatch.core.hardware.cores import usable_cores
from bigbatch.core.hardware.denormals import flush_denormals, flushes_denormals
from bigbatch.runner import CommandRunner, FunctionRunner, Request, TaskRunner
from bigbatch.runner.jobs import Job, OneAfterAnother, run_jobs
from bigbatch.runner.parallel import Parallel
from bigbatch.tasks import load_task

QUICK = RECIPE.replace({"budget.epochs": 0.1})


def jobs_of(tmp_path, seeds, recipe=QUICK):
    return [Job(recipe.replace({"seed": seed}), Request(out=tmp_path / f"seed-{seed}", title=f"seed {seed}")) for seed in range(seeds)]


def make(runner, jobs, number=2, **settings):
    with Parallel(number) as pool:
        return run_jobs(pool, runner, jobs, **settings)


def no_worker_is_left(before):
    for _ in range(200):
        if not children() - before:
            return True
        time.sleep(0.05)
    return False


def children():
    """Processes that this one has started and not yet buried, but for multiprocessing's own, which end with it."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            command = path.with_name("cmdline").read_text()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z" and "resource_tracker" not in command and "forkserver" not in command:
            found.add(int(path.parent.name))
    return found


def test_a_task_s_runs_end_in_the_results_of_runs_one_after_another(tmp_path):
    recipe = Recipe.named("digits/mlp").replace({"budget.epochs": 0.5, "batch.micro_batch": 32})
    runner, before = TaskRunner(load_task("digits/mlp")), children()
    alone = run_jobs(OneAfterAnother(), runner, jobs_of(tmp_path / "alone", 3, recipe))
    together = make(runner, jobs_of(tmp_path / "together", 3, recipe))
    assert [(r.test_score, r.test_loss, r.validation_score) for r in together] == [
        (r.test_score, r.test_loss, r.validation_score) for r in alone
    ]
    assert no_worker_is_left(before)


def test_commands_run_side_by_side(tmp_path):
    barrier = (
        "import os, sys, time\nout, seed = sys.argv[1:]\nopen(out + '/here', 'w')\n"
        "other = out.replace(f'seed-{seed}', f'seed-{1 - int(seed)}') + '/here'\n"
        "while not os.path.exists(other): time.sleep(0.01)\nprint('test_acc', 50 + int(seed))"
    )
    write_script(tmp_path, barrier)
    runner = CommandRunner(section("python train.py {out} {seed}", curve=None, time_limit_s=60), base=tmp_path)
    assert [result.test_score for result in make(runner, jobs_of(tmp_path, 2))] == [50.0, 51.0]


def test_a_killed_worker_process_s_run_is_made_again(tmp_path):
    results = make(FunctionRunner(scripts.dies_once), jobs_of(tmp_path, 4))
    assert [result.test_score for result in results] == [90.0, 91.0, 92.0, 93.0]


@pytest.mark.slow
def test_a_run_whose_worker_dies_each_time_has_failed_and_ends_no_other(tmp_path):
    jobs = jobs_of(tmp_path, 3)
    with pytest.raises(RunFailed, match=r"seed 1: its worker process died 3 times .*takes the 2 finished ones as they are"):
        make(FunctionRunner(scripts.dies), jobs)
    assert [job.is_finished for job in jobs] == [True, False, True]


@pytest.mark.parametrize("parallel", [False, True])
def test_a_failing_run_ends_no_other(tmp_path, parallel):
    jobs, made = jobs_of(tmp_path, 4), []
    pool = Parallel(2) if parallel else OneAfterAnother()
    with pool, pytest.raises(RunFailed, match="ZeroDivisionError.*makes failed runs again, and takes the 3 finished ones"):
        run_jobs(pool, FunctionRunner(scripts.fails), jobs, done=lambda number, _: made.append(number))
    assert sorted(made) == [0, 2, 3]


def test_where_all_fail_the_rest_is_not_begun(tmp_path):
    write_script(tmp_path, "import sys; sys.exit('no such data')")
    runner, said = CommandRunner(section(), base=tmp_path), []
    with pytest.raises(RunFailed, match="no such data.*; 2 other runs failed too, and the 5 left were not begun"):
        run_jobs(OneAfterAnother(), runner, jobs_of(tmp_path, 8), said.append)
    assert said == ["seed 0", "seed 1", "seed 2"]


@pytest.mark.parametrize("kind", ["function", "command"])
def test_a_signal_ends_all_and_says_how_to_go_on(tmp_path, kind):
    before = children()
    write_script(tmp_path, "import os, sys, time\nopen(sys.argv[1] + '/pid', 'w').write(str(os.getpid()))\ntime.sleep(600)")
    runner = FunctionRunner(scripts.waits) if kind == "function" else CommandRunner(section("python train.py {out}"), base=tmp_path)
    place = "checkpoints" if kind == "function" else "output"

    def interrupt():
        marks = [tmp_path / f"seed-{seed}" / place / "pid" for seed in range(2)]
        while not all(mark.exists() and mark.read_text() for mark in marks):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted, match="finished runs are kept"):
        make(runner, jobs_of(tmp_path, 4))
    assert not any(job.is_finished for job in jobs_of(tmp_path, 4))
    assert no_worker_is_left(before)


def test_each_has_its_share_of_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (result,) = make(FunctionRunner(scripts.threads), jobs_of(tmp_path, 1), number=2)
    assert result.test_score == max(1, usable_cores() // 2)


@pytest.mark.parametrize("flush", [True, False])
def test_workers_have_the_arithmetic_of_their_parent(tmp_path, flush):
    flush_denormals(flush)
    (result,) = make(FunctionRunner(scripts.flushes), jobs_of(tmp_path, 1))
    assert result.test_score == flushes_denormals()


def test_what_can_t_be_handed_over_is_said_before_the_first_run(tmp_path):
    with pytest.raises(UserError, match="can't be handed to worker processes"):
        make(FunctionRunner(lambda recipe, run: 1.0, metric="accuracy"), jobs_of(tmp_path, 1))
    with pytest.raises(UserError, match="parallel = 0: must be a finite number above zero"):
        Parallel(0)


def test_what_a_run_starts_is_started_as_the_platform_does(tmp_path):
    (result,) = make(FunctionRunner(scripts.starts_as), jobs_of(tmp_path, 1))  # else each loader of data is a new interpreter
    assert result.test_score == 1.0


def test_worker_processes_are_kept_from_one_call_to_the_next(tmp_path):
    with Parallel(1) as pool:
        runner = FunctionRunner(scripts.tells_its_process)
        calls = [run_jobs(pool, runner, jobs_of(tmp_path / str(number), 2)) for number in range(2)]
    assert len({result.test_score for results in calls for result in results}) == 1


def test_a_study_that_breaks_off_leaves_nothing_running(tmp_path):
    before, interrupt = children(), signal.getsignal(signal.SIGINT)

    def breaks(number, result):
        raise ZeroDivisionError

    with Parallel(2) as pool, pytest.raises(ZeroDivisionError):
        run_jobs(pool, FunctionRunner(scripts.trains), jobs_of(tmp_path, 4), done=breaks)
    assert signal.getsignal(signal.SIGINT) is interrupt  # no longer the pool's
    assert no_worker_is_left(before)
