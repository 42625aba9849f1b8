import time
from threading import Event, Thread

import pytest

from bigbatch import Recipe, UserError, plan
from bigbatch.core.checks import Interrupted, RunFailed
from bigbatch.runner import CommandRunner, Request, runner_of
from bigbatch.runner.workers import WorkersRunner
from bigbatch.tasks import load_task
from bigbatch.tasks.digits_mlp import DigitsMLP
from bigbatch.train.state.record import read_record

NAMED = Recipe.named("digits/mlp")
LOCAL = plan(NAMED, global_batch=512, rule="local", workers=2).recipe.replace({"budget.epochs": 4, "batch.micro_batch": 64})


class Fails(DigitsMLP):
    """Its training data can't be read."""

    def splits(self):
        raise UserError("no data here")


class Breaks(DigitsMLP):
    """A mistake of the user's."""

    def model(self, **options):
        raise ZeroDivisionError("my mistake")


def test_local_steps_are_run_by_several_workers(tmp_path):
    runner = WorkersRunner(runner_of("digits/mlp"), 2)
    result = runner.run(LOCAL, Request(out=tmp_path / "run"))
    start = read_record(tmp_path / "run" / "record.jsonl")[0]
    assert start["workers"] == 2
    assert result.test_score > 0.8
    again = runner.run(LOCAL, Request(out=tmp_path / "run"))  # finished: as it is
    assert again == result
    assert runner.run(LOCAL, Request()).test_score == result.test_score


def test_all_other_recipes_by_one(tmp_path):
    runner = WorkersRunner(runner_of("digits/mlp"), 2)
    runner.run(NAMED.replace({"budget.epochs": 1, "batch.micro_batch": 32}), Request(out=tmp_path / "run"))
    assert read_record(tmp_path / "run" / "record.jsonl")[0]["workers"] == 1


def test_a_diverged_run_is_a_result(tmp_path):
    result = WorkersRunner(runner_of("digits/mlp"), 2).run(
        LOCAL.replace({"optimizer": {"name": "sgd", "lr": 1e30, "weight_decay": 1.0}}), Request(out=tmp_path / "run")
    )
    assert result.diverged
    assert (tmp_path / "run" / "diverged.txt").exists()


def test_errors_come_back():
    runner = WorkersRunner(runner_of("digits/mlp"), 4)
    with pytest.raises(UserError, match="4 workers for a global_batch of 2: some would have no samples"):
        runner.run(LOCAL.replace({"batch.global_batch": 2, "batch.micro_batch": 1}), Request())
    with pytest.raises(UserError, match="no data here"):
        WorkersRunner(runner_of(Fails()), 2).run(LOCAL, Request())
    with pytest.raises(RunFailed, match="digits/mlp: its workers ended with exit code 1: .*my mistake"):
        WorkersRunner(runner_of(Breaks()), 2).run(LOCAL, Request())


def test_what_cannot_be_handed_over_is_refused():
    task = load_task("digits/mlp")
    task.unpicklable = lambda: None
    with pytest.raises(UserError, match="can't be handed to worker processes"):
        WorkersRunner(runner_of(task), 2).run(LOCAL, Request())
    command = CommandRunner(
        {"run": "true", "score": "acc ([0-9.]+)", "metric": {"name": "accuracy", "better": "higher", "margin": 0.005}}, name="mine"
    )
    with pytest.raises(UserError, match="--workers 2: mine starts its own processes"):
        WorkersRunner(command, 2)
    with pytest.raises(UserError, match="workers = 0"):
        WorkersRunner(runner_of("digits/mlp"), 0)


def test_a_run_that_is_asked_to_stop_saves_and_goes_on(tmp_path):
    runner, stop, out = WorkersRunner(runner_of("digits/mlp"), 2), Event(), tmp_path / "run"
    recipe = LOCAL.replace({"budget.epochs": 200})

    def once_begun():
        while not (out / "last.pt").exists():
            time.sleep(0.01)
        stop.set()

    Thread(target=once_begun, daemon=True).start()
    with pytest.raises(Interrupted, match="stopped in digits/mlp and saved"):
        runner.run(recipe, Request(out=out, stop=stop))
    assert not (out / "result.json").exists()
    assert runner.run(recipe, Request(out=out)).test_score == runner.run(recipe, Request()).test_score
