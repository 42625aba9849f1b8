"""Scores of a run: which are refused, which weights are the best, when the target is reached, what is recorded."""

import json
import math
import re

import pytest
import torch
from tests.loss_task import RECIPE, Nats

from bigbatch import UserError, fit
from bigbatch.core.clock import Clock
from bigbatch.tasks.digits_mlp import DigitsMLP
from bigbatch.train import Result
from bigbatch.train import run as run_module
from bigbatch.train.measure.evaluate import Evaluation, evaluate
from bigbatch.train.state.checkpoint import read_checkpoint
from bigbatch.train.state.record import read_record

QUIET = {"quiet": True, "tensorboard": False}


@pytest.fixture
def scored(monkeypatch):
    """Runs whose evaluations have the scores given, one after the other; the last for the test set."""

    def use(*scores):
        left = list(scores)
        monkeypatch.setattr(run_module, "evaluate", lambda *_, **__: Evaluation(1.0, left.pop(0), 128))

    return use


def epoch_of(path):
    return Clock(*read_checkpoint(path, torch.device("cpu"))["progress"][0]).samples / 256


def test_the_best_checkpoint_of_a_loss_is_the_lowest(tmp_path, scored):
    scored(0.9, 0.4, 0.6, 0.5)
    result = fit(Nats(), RECIPE, out=tmp_path, **QUIET)
    assert epoch_of(tmp_path / "best.pt") == 2
    assert (result.best_validation_score, result.validation_score, result.test_score) == (0.4, 0.6, 0.5)


def test_the_best_of_an_earlier_session_is_kept(tmp_path, scored):
    scored(0.4, 0.9, 0.6, 0.5)
    short = RECIPE.replace({"budget.epochs": 2})
    fit(Nats(), short, out=tmp_path / "short", measure_test=False, **QUIET)
    state = read_checkpoint(tmp_path / "short" / "last.pt", torch.device("cpu"))
    assert state["progress"][2] == 0.4
    scored(0.9, 0.7, 0.8, 0.5)
    fit(Nats(), RECIPE, out=tmp_path / "whole", save_every_s=0, **QUIET)
    assert epoch_of(tmp_path / "whole" / "best.pt") == 2


def test_a_target_of_a_loss_is_reached_from_above(tmp_path, scored):
    scored(0.9, 0.4, 0.6)
    result = fit(Nats(), RECIPE, out=tmp_path, target=0.5, **QUIET)
    assert result.reached
    assert result.samples == 2 * 256
    scored(0.9, 0.6, 0.51, 0.5)
    assert not fit(Nats(), RECIPE, target=0.5, **QUIET).reached


def test_without_a_finite_score_there_is_no_best(tmp_path, scored):
    scored(math.nan, math.inf, math.nan, 0.5)
    result = fit(Nats(), RECIPE, out=tmp_path, target=0.5, **QUIET)
    assert not result.reached
    assert math.isnan(result.best_validation_score)
    assert not (tmp_path / "best.pt").exists()
    assert json.loads((tmp_path / "result.json").read_text())["best_validation_score"] is None


def test_the_record_says_what_scores_are_and_tensorboard_too(tmp_path):
    from tests.train.state.test_tensorboard import scalars

    result = fit(Nats(), RECIPE, out=tmp_path, quiet=True)
    assert read_record(tmp_path / "record.jsonl")[0]["metric"]["unit"] == "nats"
    ((_, value),) = scalars(tmp_path / "tensorboard", "test/score (loss, nats)")
    assert value == pytest.approx(result.test_score, abs=1e-4)
    assert result.test_score == pytest.approx(result.test_loss)


def test_the_display_shows_the_metric_s_unit(capfd):
    fit(Nats(), RECIPE, tensorboard=False)
    assert re.search(r"  loss 0\.\d{3} nats  ", capfd.readouterr().err)


@pytest.mark.parametrize(("what", "shape"), [("scores", (128, 3)), ("scores", ()), ("losses", (128, 3))])
def test_values_that_are_not_one_a_sample_are_refused(what, shape):
    class Wrong(Nats):
        pass

    setattr(Wrong, what, lambda self, outputs, targets: torch.ones(shape))
    message = rf"task tests/nats: {what} have shape {re.escape(str(shape))}: must be one per sample, \(128,\); of one per token, take each"
    with pytest.raises(UserError, match=message):
        evaluate(Wrong().model(), Wrong(), Wrong().splits().validation, recipe=RECIPE)


def test_a_score_that_is_not_a_number_is_named():
    class Broken(DigitsMLP):
        def scores(self, outputs, targets):
            return super().scores(outputs, targets) / (len(targets) < 500)  # the last of three batches alone is finite

    task = Broken()
    message = (
        r"task digits/mlp: the mean score over the training set is (nan|inf): must be finite; see the task's scores, first those of "
        "samples 0 to 499"
    )
    with pytest.warns(UserWarning, match=message):
        got = evaluate(task.model(), task, task.splits().train, recipe=RECIPE, name="the training set")
    assert math.isfinite(got.loss)
    with pytest.warns(UserWarning, match="the mean score over the .* set is nan") as told:
        fit(AlwaysNaN(), RECIPE, **QUIET)
    assert {str(warning.message).split(":")[1] for warning in told} == {
        " the mean score over the validation set is nan",
        " the mean score over the test set is nan",
    }


def test_an_infinite_score_is_stored_as_none():
    result = Result("t", 1, 1, test_score=math.inf, validation_score=-math.inf)
    assert "Infinity" not in result.to_json()
    assert math.isnan(Result.from_json(result.to_json()).test_score)


class AlwaysNaN(Nats):
    def scores(self, outputs, targets):
        return super().scores(outputs, targets) * math.nan
