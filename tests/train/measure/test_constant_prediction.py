"""The best constant output of a task: what it is where it is known by hand, and what is said where there is none."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from bigbatch import Metric, Recipe
from bigbatch.core.checks import UserError
from bigbatch.tasks import load_task
from bigbatch.train.measure.constant_prediction import constant_prediction

RECIPE = Recipe.named("digits/mlp")
CPU = torch.device("cpu")


def task_of(model, losses, scores, **more):
    metric = Metric("loss", "", "lower", margin=0.1)
    return SimpleNamespace(name="own", metric=metric, model=lambda: model, losses=losses, scores=scores, **more)


def squared(outputs, targets):
    return (outputs.squeeze(1) - targets).square()


def measured(task, dataset):
    return constant_prediction(task, RECIPE, dataset, device=CPU)


def test_of_a_classification_it_is_the_largest_class_and_the_entropy_of_all():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2] * 1)
    task = load_task("digits/mlp")
    found = measured(task, TensorDataset(torch.randn(10, 1, 8, 8), labels))
    assert found.score == pytest.approx(0.6)
    assert found.loss == pytest.approx(-sum(p * math.log(p) for p in (0.6, 0.3, 0.1)), abs=1e-3)
    assert found.spread == pytest.approx(math.sqrt(0.6 * 0.4))
    assert found.num_samples == 10


def test_of_classes_of_one_size_it_is_found_at_once():
    found = measured(load_task("digits/mlp"), TensorDataset(torch.randn(1000, 1, 8, 8), torch.arange(1000) % 10))
    assert (found.score, found.loss) == (pytest.approx(0.1), pytest.approx(math.log(10), abs=1e-5))


def test_of_a_regression_it_is_the_mean_however_large_and_over_all_batches():
    targets = torch.cat([torch.full((500,), 200_000.0), torch.full((500,), 400_000.0)])
    found = measured(task_of(nn.Linear(1, 1), squared, squared), TensorDataset(torch.randn(1000, 1), targets))
    assert found.loss == pytest.approx(1e10, rel=1e-3)
    assert found.score == pytest.approx(1e10, rel=1e-3)


def test_of_weighted_samples_it_is_that_of_what_they_count():
    """Ragged: batches of different lengths share one distribution over tokens; by hand, 3 of 4 tokens are the first."""

    def losses(outputs, targets):
        return F.cross_entropy(outputs.transpose(1, 2), targets, ignore_index=-1, reduction="none").sum(1)

    samples = [(torch.zeros(n, 1), torch.tensor([0, 0, 0, 1][:n])) for n in [4] * 500 + [4] * 20]
    samples[510] = (torch.zeros(8, 1), torch.tensor([0, 0, 0, 1] * 2))

    def collate(batch):
        length = max(len(x) for x, _ in batch)
        pad = lambda t, value: F.pad(t, (0, length - len(t)), value=value)  # noqa: E731
        return torch.stack([torch.zeros(length, 1) for _ in batch]), torch.stack([pad(y, -1) for _, y in batch])

    from bigbatch.tasks.optional_parts import Collated

    task = task_of(nn.Linear(1, 2), losses, losses, weights=lambda targets: (targets >= 0).sum(1))
    found = measured(task, Collated(samples, collate))
    assert found.loss == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), abs=1e-3)


def test_leaves_random_numbers_and_any_model_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    measured(load_task("digits/mlp"), load_task("digits/mlp").splits().test)
    assert torch.equal(torch.rand(4), expected)


class LossesInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x):
        return self.linear(x).squeeze(1).square()


@pytest.mark.parametrize(
    ("task", "why"),
    [
        (task_of(LossesInside(), lambda o, t: o, lambda o, t: o), "no constant output is the best one by its losses"),
        (task_of(nn.Linear(1, 1), lambda o, t: squared(o.detach(), t), squared), "do not take a constant output (RuntimeError"),
        (task_of(nn.Linear(1, 1), squared, squared, outputs=lambda m, x: m(x).mean(0)), "hold a part of shape (1,), not one tensor"),
        (task_of(nn.Linear(1, 1), squared, squared, outputs=lambda m, x: {"a": m(x), "b": "text"}), "hold a part of type str"),
    ],
    ids=["losses of the model's own", "no gradient", "no samples", "text"],
)
def test_a_task_without_one_is_told_why(task, why):
    with pytest.raises(UserError) as told:
        measured(task, TensorDataset(torch.randn(20, 1), torch.randn(20)))
    assert why in str(told.value)


def test_outputs_of_any_structure():
    def losses(outputs, targets):
        return squared(outputs["mean"], targets) + outputs["aside"][1].square().sum(1)

    task = task_of(nn.Linear(1, 1), losses, losses, outputs=lambda m, x: {"mean": m(x), "aside": (None, torch.ones(len(x), 3))})
    found = measured(task, TensorDataset(torch.randn(4, 1), torch.tensor([1.0, 1.0, 3.0, 3.0])))
    assert found.loss == pytest.approx(1.0, abs=1e-3)
