import math
import time
from functools import partial

import numpy as np
import pytest
import torch
from tests.runner.scripts import RECIPE

import bigbatch
from bigbatch import Interrupted, Metric, Recipe, UserError
from bigbatch.core.checks import CheckpointError, RunFailed
from bigbatch.noise.monitor import NoiseScaleMonitor
from bigbatch.runner import FunctionRunner, Request, TaskRunner, runner_of
from bigbatch.study.critical.critical import critical
from bigbatch.train.state.record import read_record

LOSS = Metric("loss", "nats", "lower", margin=0.01)


def falling(recipe, run):
    for update in range(1, recipe.num_updates + 1):
        run.log(updates=update, loss=1 / update, score=1 / update, lr=recipe.optimizer.lr)
    run.score(1 / recipe.num_updates)


falling.metric = LOSS


def test_scores_record_and_result(tmp_path):
    recipe = RECIPE.replace({"budget.updates": 8, "budget.epochs": None})
    result = FunctionRunner(falling).run(recipe, Request(out=tmp_path))
    assert (result.test_score, result.validation_score, result.best_validation_score, result.updates) == (0.125, 0.125, 0.125, 8)
    record = read_record(tmp_path / "record.jsonl")
    assert [line["facts"] for line in record if line["kind"] == "reported"][:1] == [{"lr": 0.1}]
    assert record[0]["metric"]["unit"] == "nats"


def test_its_return_value_is_a_score_too():
    assert FunctionRunner(lambda recipe, run: recipe.seed, metric=LOSS).run(RECIPE.replace({"seed": 3}), Request()).test_score == 3.0


def test_it_ends_at_the_target():
    result = FunctionRunner(falling).run(RECIPE, Request(target=0.3, measure_test=False))
    assert (result.reached, result.updates, result.best_validation_score) == (True, 4, 0.25)


def test_a_loss_that_is_not_finite_is_a_diverged_run(tmp_path):
    def diverges(recipe, run):
        run.log(updates=3, loss=math.nan)

    result = FunctionRunner(diverges, metric=LOSS).run(RECIPE, Request(out=tmp_path))
    assert (result.diverged, result.updates) == (True, 3)
    assert "loss = nan after update 3" in (tmp_path / "diverged.txt").read_text()


def nothing(recipe, run):
    pass


def breaks(recipe, run):
    raise ZeroDivisionError("by my own hand")


def two_positions(recipe, run):
    run.log(updates=1, samples=32, loss=1.0)


@pytest.mark.parametrize(
    ("function", "request_", "why"),
    [
        (nothing, Request(), r"function nothing: ended without a score; call run.score\(value\), or return it"),
        (nothing, Request(target=1.0, measure_test=False), "told no validation score, which a target needs"),
        (breaks, Request(), r"function breaks: ZeroDivisionError: by my own hand \(test_function.py, line \d+\)"),
        (two_positions, Request(), "give exactly one"),
    ],
)
def test_runs_that_fail(function, request_, why):
    with pytest.raises(RunFailed, match=why):
        FunctionRunner(function, metric=LOSS).run(RECIPE, request_)


def test_a_failure_leaves_its_traceback(tmp_path):
    with pytest.raises(RunFailed, match=r"the traceback is in .*failed.txt"):
        FunctionRunner(breaks, metric=LOSS).run(RECIPE, Request(out=tmp_path))
    assert "raise ZeroDivisionError" in (tmp_path / "failed.txt").read_text()


def test_a_metric_is_needed():
    with pytest.raises(UserError, match="function nothing: states no metric; give one"):
        FunctionRunner(nothing)


def test_asked_to_stop_it_does_and_its_checkpoints_are_there_again(tmp_path):
    import threading

    stop, seen = threading.Event(), []

    def saves(recipe, run):
        seen.append((run.checkpoint_dir / "state").exists())
        (run.checkpoint_dir / "state").write_text("x")
        run.log(updates=1, loss=1.0)
        return 1.0

    stop.set()
    runner = FunctionRunner(saves, metric=LOSS)
    with pytest.raises(Interrupted, match="the same command goes on"):
        runner.run(RECIPE, Request(out=tmp_path, stop=stop))
    assert runner.run(RECIPE, Request(out=tmp_path)).test_score == 1.0
    assert seen == [False, True]


def test_noise_is_recorded(tmp_path):
    def measured(recipe, run):
        torch.manual_seed(recipe.seed)
        model = torch.nn.Linear(4, 1)
        monitor = NoiseScaleMonitor(model)
        run.noise(monitor)
        for update in range(1, 4):
            for _ in range(4):
                (model(torch.randn(8, 4)) ** 2).sum().div(32).backward()
                monitor.micro_batch(8, divisor=32)
            monitor.update()
            run.log(updates=update, loss=1.0)
            model.zero_grad()
        return 0.5

    FunctionRunner(measured, metric=LOSS).run(RECIPE, Request(out=tmp_path))
    lines = [line for line in read_record(tmp_path / "record.jsonl") if line["kind"] == "noise"]
    assert [line["update"] for line in lines] == [1, 2, 3]
    assert all(value > 0 for line in lines for value in line["signal_and_noise"]["all"][1:])


def test_what_is_given_decides_the_way_to_run():
    assert isinstance(runner_of("digits/mlp"), TaskRunner)
    assert isinstance(runner_of(falling), FunctionRunner)
    runner = FunctionRunner(falling)
    assert runner_of(runner) is runner


def test_fields_that_it_does_not_follow_limit_the_rules():
    plans = []
    for can in (None, ["lr", "warmup"], ["lr"], []):
        runner = FunctionRunner(falling, can=can)
        recipe = RECIPE.replace({"schedule.warmup": {"kind": "gradual", "epochs": 0.1}, "num_train_samples": 4096})
        plans.append(bigbatch.plan(recipe, global_batch=256, can_change=runner.can_change))
    assert [plan.rule for plan in plans] == ["muon", "legw", "sqrt", "none"]
    assert "which your script has no place for" in plans[1].reason
    with pytest.raises(UserError, match=r"the plan changes optimizer.adam_lr, .*; your command or function has no place for them"):
        bigbatch.plan(Recipe.named("digits/mlp"), global_batch=256, rule="muon", can_change=runner.can_change)


def test_what_an_unfinished_run_of_another_recipe_left_is_not_gone_on_from(tmp_path):
    def breaks_off(recipe, run):
        (run.checkpoint_dir / "state").write_text("x")
        raise ZeroDivisionError

    with pytest.raises(RunFailed):
        FunctionRunner(breaks_off, metric=LOSS).run(RECIPE, Request(out=tmp_path))
    with pytest.raises(CheckpointError, match=r"files of an unfinished run of another recipe \(optimizer.lr: 0.2 here, 0.1 there\)"):
        FunctionRunner(breaks_off, metric=LOSS).run(RECIPE.replace({"optimizer.lr": 0.2}), Request(out=tmp_path))
    with pytest.raises(CheckpointError, match="files of an unfinished run of another function"):
        FunctionRunner(falling).run(RECIPE, Request(out=tmp_path))


def test_studies_give_each_run_of_a_function_a_folder(tmp_path):
    def keeps(recipe, run):
        (run.checkpoint_dir / "state").write_text("x")
        for update in range(1, recipe.num_updates + 1):
            run.log(updates=update, score=recipe.batch.global_batch * update / 1e4)

    keeps.metric = Metric("points", margin=1.0)
    study = critical(keeps, RECIPE, batches=[16, 32, 64], target=0.05, lr_factors=[1.0], out=tmp_path)
    assert [point.updates for point in study.points] == pytest.approx([32, 16, 8])
    assert len(list(tmp_path.glob("runs/*/checkpoints/state"))) == 3


@pytest.mark.parametrize("number", [torch.tensor(0.25), torch.tensor([0.25]), np.float32(0.25), np.float64(0.25), 0.25])
def test_numbers_of_any_kind_are_taken(tmp_path, number):
    def tells(recipe, run):
        run.log(updates=torch.tensor(4), loss=number, score=number, lr=number)
        run.score(number)

    result = FunctionRunner(tells, metric=LOSS).run(RECIPE, Request(out=tmp_path / "told"))
    assert (result.test_score, result.validation_score) == (0.25, 0.25)
    returned = FunctionRunner(lambda recipe, run: number, metric=LOSS).run(RECIPE, Request(out=tmp_path / "returned"))
    assert returned.test_score == 0.25


@pytest.mark.parametrize("value", [torch.ones(2), "0.25", [0.25], 1j])
def test_what_is_no_number_is_named(tmp_path, value):
    with pytest.raises(RunFailed, match=r"^score = .*: must be a number$"):
        FunctionRunner(lambda recipe, run: run.score(value), metric=LOSS).run(RECIPE, Request())
    with pytest.raises(RunFailed, match=r"^loss = .*: must be a number$"):
        FunctionRunner(lambda recipe, run: run.log(updates=1, loss=value), metric=LOSS).run(RECIPE, Request())


def test_a_target_met_at_the_first_score_that_is_told_says_nothing(tmp_path):
    """It was said that the number of updates hardly falls with the batch, and smaller batches were advised."""

    def seldom(recipe, run):
        run.log(updates=10, score=0.04)

    study = critical(FunctionRunner(seldom, metric=LOSS), RECIPE, batches=[16, 32, 64], target=0.05, lr_factors=[1.0], out=tmp_path)
    assert study.sentence() == (
        "nothing can be said: every run met the target at update 10, so that they differ by less than their scores are apart; tell scores "
        "more often, or lower the target"
    )


def scaled(recipe, run, *, factor=1.0):
    return factor * recipe.optimizer.lr


def test_a_partial_with_other_arguments_is_another_function(tmp_path):
    """A second one in the same folder was given the first one's result."""
    recipe, out = RECIPE.replace({"optimizer.lr": 0.5}), Request(out=tmp_path)
    runners = [FunctionRunner(partial(scaled, factor=factor), metric=LOSS) for factor in (1.0, 2.0, 1.0)]
    assert runners[0].run(recipe, out).test_score == 0.5
    with pytest.raises(
        CheckpointError, match=r"holds a run of another function .*scaled\(factor=1.0\)' there, .*scaled\(factor=2.0\)' here"
    ):
        runners[1].run(recipe, out)
    assert runners[2].run(recipe, out).test_score == 0.5


@pytest.mark.parametrize("logs_again", [True, False])
def test_a_run_that_goes_on_keeps_what_it_told_before_it_was_stopped(tmp_path, logs_again):
    """Its record used to begin anew, and its best score and its seconds to be those of the last attempt."""
    recipe, stops = RECIPE.replace({"budget.updates": 16, "budget.epochs": None}), [True]

    def goes_on(recipe, run):
        place = run.checkpoint_dir / "update"
        begun = int(place.read_text()) if place.exists() else 0
        for update in range(begun + 1, recipe.num_updates + 1):
            time.sleep(0.01)
            run.log(updates=update, loss=1.0, score=0.5 if update == 5 else 1.0)
            if update % 7 == 0:
                place.write_text(str(update))
            if update == 16 - 2 * logs_again and stops:
                stops.clear()
                place.write_text(str(update if not logs_again else 7))
                raise Interrupted("stopped")
        run.score(1.0)

    runner = FunctionRunner(goes_on, metric=LOSS)
    with pytest.raises(Interrupted):
        runner.run(recipe, Request(out=tmp_path))
    result = runner.run(recipe, Request(out=tmp_path))
    lines = read_record(tmp_path / "record.jsonl")
    assert [line["update"] for line in lines if line["kind"] == "reported"] == list(range(1, 17))
    assert sum(line["kind"] == "start" for line in lines) == 1
    assert result.best_validation_score == 0.5
    assert result.train_s > 0.12  # the last attempt alone sleeps for 0.09
