"""The study of subset gradients: what each rule makes of the parts, by hand, and what an optimizer behind it sees."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from bigbatch import Recipe, build_optimizer
from bigbatch.core.methods import OPTIMIZERS

FOLDER = Path(__file__).parents[2] / "studies" / "subsets"


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("subset_gradients", FOLDER / "subset_gradients.py")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["subset_gradients"] = loaded
    spec.loader.exec_module(loaded)
    yield loaded
    for name in ("subset_sgd", "subset_muon"):
        del OPTIMIZERS._registered[name]


ROWS = torch.tensor([[4.0, 0.0], [3.0, 1.0], [1.0, 2.0], [0.0, -3.0]])  # mean (2, 0)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("mean", (2.0, 0.0)),
        ("most_different", (0.5, -0.5)),  # the last two: cosines 0 and 1/sqrt(5)
        ("least_different", (3.5, 0.5)),
        ("most_distant", (0.5, -0.5)),  # distances 2, sqrt(2), sqrt(5), sqrt(13)
    ],
)
def test_rules_by_hand(module, rule, expected):
    made = module.combine(ROWS, rule, 2, torch.Generator().manual_seed(0))
    assert made.tolist() == pytest.approx(expected)


def test_weighted_by_hand(module):
    weights = torch.tensor([2.0, 2**0.5, 5**0.5, 13**0.5])
    expected = (weights[:, None] * ROWS).sum(0) / weights.sum()
    assert module.combine(ROWS, "weighted", 2, None).tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("rule", ["random", "noise"])
def test_what_is_random_has_the_right_mean_and_spread(module, rule):
    chance = torch.Generator().manual_seed(1)
    made = torch.stack([module.combine(ROWS, rule, 2, chance) for _ in range(4000)])
    torch.testing.assert_close(made.mean(0), ROWS.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(made.var(0), ROWS.var(0) * (1 / 2 - 1 / 4), atol=0, rtol=0.1)


@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_the_mean_is_the_optimizer_itself(module, name):
    """With all parts kept any rule is, too: an optimizer sees what the rule makes, over several updates."""
    recipe = Recipe.named("digits/mlp")
    own = {"sgd": {"name": "sgd", "lr": 0.1, "momentum": 0.9}, "muon": {"name": "muon", "lr": 0.02, "adam_lr": 0.003}}[name]
    x, y = torch.randn(16, 8), torch.randn(16, 4)
    ends = {}
    for rule, kept in (("plain", 4), ("mean", 4), ("most_different", 4)):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4))
        changed = own if rule == "plain" else {**own, "name": f"subset_{name}", "rule": rule, "kept": kept}
        optimizer = build_optimizer(model, recipe.replace({"optimizer": changed}))
        for _ in range(3):
            optimizer.zero_grad()
            for part in range(4):
                at = slice(4 * part, 4 * part + 4)
                ((model(x[at]) - y[at]).square().mean() / 4).backward()
            optimizer.step()
        ends[rule] = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(ends["mean"], ends["plain"], atol=2e-4, rtol=0)
    torch.testing.assert_close(ends["most_different"], ends["plain"], atol=2e-4, rtol=0)
    assert len(module.SEEN) >= 6
