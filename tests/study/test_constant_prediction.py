"""A target that a constant prediction reaches is refused before anything runs, by every study of updates to a target."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from bigbatch import Metric, Recipe, UserError
from bigbatch.core.checks import Diverged
from bigbatch.core.metric import ACCURACY
from bigbatch.runner.function import FunctionRunner
from bigbatch.study.critical import critical
from bigbatch.study.steps import steps
from bigbatch.tasks.task import Splits

RECIPE = Recipe.named("digits/mlp")
STUDIES = {"critical": lambda *a, **k: critical(*a, batches=[8, 32, 128], **k), "steps": lambda *a, **k: steps(*a, batches=[32, 128], **k)}


@pytest.fixture
def no_runs(monkeypatch):
    def fit(*_, **__):
        raise AssertionError("a run was made")

    monkeypatch.setattr("bigbatch.runner.task.fit", fit)


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
@pytest.mark.parametrize("target", [0.05, 0.1])
def test_of_accuracy(study, target, tmp_path, no_runs):
    said = "the same prediction for every sample has a validation accuracy of"
    with pytest.raises(UserError, match=rf"target = {target}: {said} 1\d\.\d+ %"):
        study("digits/mlp", target=target, quiet=True, out=tmp_path)


class Half:
    """Targets +1 and -1 at 0 and 1, alike in training and validation; in the test set they are 0, which a constant fits exactly."""

    name = "half"
    metric = Metric("loss", better="lower", margin=0.01)

    def splits(self):
        x = torch.tensor([[0.0], [1.0]] * 64)
        return Splits(*(TensorDataset(x, y) for y in (1 - 2 * x, 1 - 2 * x, 0 * x)))

    def model(self):
        return nn.Linear(1, 1)

    def losses(self, outputs, targets):
        return (outputs - targets).square().mean(1)

    scores = losses


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_of_a_loss_on_validation_data(study, tmp_path, no_runs):
    """The best constant is 0, and its validation loss 1; 2 is no better than it, 0.5 is."""
    recipe = RECIPE.replace({"task": "half", "num_train_samples": 128, "model": {}})
    with pytest.raises(UserError, match="has a validation loss of 1.*choose a lower one"):
        study(Half(), recipe, target=2.0, quiet=True, out=tmp_path)
    with pytest.raises(AssertionError, match="a run was made"):
        study(Half(), recipe, target=0.5, quiet=True, out=tmp_path)


def test_where_it_is_not_known_the_target_is_taken(tmp_path):
    def diverges(recipe, run):
        raise Diverged("loss = nan", update=1)

    runner = FunctionRunner(diverges, metric=ACCURACY)
    study = critical(runner, RECIPE, batches=[8, 32, 128], target=0.05, lr_factors=[1.0], quiet=True, out=tmp_path)
    assert [point.updates for point in study.points] == [None, None, None]
