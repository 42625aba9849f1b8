"""The study of steps to a target: what it searches at each batch, what it concludes and what it admits; real runs are kept."""

import json
import math

import pytest
from tests.cli.command import bigbatch

from bigbatch import Diverged, Recipe, UserError
from bigbatch.core.extras import MissingExtra
from bigbatch.report.steps import draw_steps
from bigbatch.runner.parallel import Parallel
from bigbatch.study.critical.critical import critical
from bigbatch.study.steps import Range, steps
from bigbatch.study.steps.study import COLUMNS, stored_rows
from bigbatch.train import Result

RECIPE = Recipe.named("digits/mlp").replace({"batch.micro_batch": 16})
BATCHES = [8, 16, 32, 64, 128, 256, 512, 1024]


class Fake:
    """Runs that cost nothing: three regimes with knees at 32 and 256, and the best rate 0.1 (B/32)^power times `off`."""

    def __init__(self, power=0.5, off=1.0, momentum=0.9, stable=math.inf, slow=1.0):
        self.power, self.off, self.momentum, self.stable, self.slow, self.calls = power, off, momentum, stable, slow, []

    def updates(self, batch):
        shape = max(32 / batch, 1.0) * math.sqrt(32 / min(max(batch, 32), 256))
        return 400 * shape * self.slow

    def __call__(self, task, recipe, *, target, evaluate_every, **settings):
        self.calls.append((recipe, evaluate_every))
        batch, lr, momentum = recipe.batch.global_batch, recipe.optimizer.lr, recipe.optimizer.momentum
        if lr > self.stable:
            raise Diverged("loss = nan", update=7)
        off = math.log2(lr / (0.1 * (batch / 32) ** self.power * self.off))
        far = math.log2((1 - momentum) / (1 - self.momentum))
        needed = round(self.updates(batch) * (1 + off**2 / 50 + far**2 / 200))
        made = min(needed, recipe.num_updates)
        score = 0.9 * min(1.0, made / needed)
        return Result("digits/mlp", made, made * batch, best_validation_score=score, train_s=1.0, reached=needed <= made)


@pytest.fixture
def fake(monkeypatch):
    def use(**kwargs):
        runs = Fake(**kwargs)
        monkeypatch.setattr("bigbatch.runner.task.fit", runs)
        return runs

    return use


def study(out, **kwargs):
    given = {"recipe": RECIPE, "batches": BATCHES, "target": 0.9, "trials": 24, "max_epochs": 100, "quiet": True, "out": out, **kwargs}
    return steps("digits/mlp", **given)


def test_the_three_regimes_and_the_law_of_the_rate(tmp_path, fake):
    runs = fake(power=0.8)
    found = study(tmp_path, batches=BATCHES[::-1])
    for point in found.points:
        assert runs.updates(point.global_batch) <= point.best.updates <= 1.25 * runs.updates(point.global_batch)
    assert found.regimes.perfect_until.lower <= 32 <= found.regimes.perfect_until.upper * 1.3
    assert found.regimes.maximal_from.lower / 1.5 <= 256 <= found.regimes.maximal_from.upper * 1.5
    assert found.lr_slope.value == pytest.approx(0.8, abs=0.35)
    words = " ".join(found.sentences())
    assert "perfect scaling up to about" in words
    assert "no fewer updates beyond about" in words
    assert "the root rule has 0.5, linear scaling 1" in words


def test_regimes_that_were_not_seen_are_told(tmp_path, fake):
    runs = fake()
    runs.updates = lambda batch: 8000 / batch
    words = " ".join(study(tmp_path / "perfect", batches=[8, 16, 32, 64], trials=16).sentences())
    assert "perfect scaling up to 64, the largest batch" in words
    assert "updates still fall at 64: maximal data parallelism was not reached" in words
    runs.updates = lambda batch: 300
    words = " ".join(study(tmp_path / "flat", batches=[8, 16, 32, 64], trials=16).sentences())
    assert "no perfect scaling from 8 on" in words
    words = " ".join(study(tmp_path / "few", batches=[8, 16], trials=4).sentences())
    assert "no regimes: 2 of 2 batches reached the target, 4 must" in words


def test_an_edge_moves_the_range(tmp_path, fake):
    fake(off=60.0, slow=0.5)  # at 6, where the first range ends at 1.6
    (first, _) = study(tmp_path, batches=[8, 16]).points
    assert len(first.spaces) > 1
    assert first.spaces[1][0].low == pytest.approx(first.spaces[0][0].high)
    assert first.best.values["optimizer.lr"] > first.spaces[0][0].high * 0.8
    fake(off=1e6, slow=0.02)
    first = study(tmp_path / "far", batches=[8, 16]).points[0]
    assert first.edge == "optimizer.lr"


def test_where_none_reaches_runs_get_longer(tmp_path, fake):
    runs = fake()
    runs.updates = lambda batch: 100 if batch == 8 else 450
    points = study(tmp_path, batches=[8, 16], trials=8).points
    assert points[1].longest >= 450
    assert points[1].best is not None
    runs.updates = lambda batch: 100 if batch == 8 else 1e9
    hopeless = study(tmp_path / "never", batches=[8, 16], trials=8)
    assert hopeless.points[1].best is None
    assert "batch 16: none of 20 trials reached the target within" in " ".join(hopeless.doubts())
    assert list(stored_rows(hopeless.to_dict()))[1][1].startswith("> ")


def test_rates_that_diverge_are_kept_and_do_not_count(tmp_path, fake):
    fake(stable=0.2)
    for point in study(tmp_path, batches=[8, 16, 32, 64]).points:
        assert len(point.feasible) >= 24
        assert all(trial.values["optimizer.lr"] > 0.2 for trial in point.trials if trial.outcome == "diverged")
        assert point.best.values["optimizer.lr"] <= 0.2


def test_evaluations_are_a_few_per_cent_of_the_run_apart(tmp_path, fake):
    runs = fake()
    study(tmp_path, batches=[8, 128])
    by_batch = {}
    for recipe, interval in runs.calls:
        by_batch.setdefault(recipe.batch.global_batch, set()).add(round(interval * recipe.num_train_samples / recipe.batch.global_batch, 6))
    (first,), (second,) = by_batch[8], by_batch[128]
    assert first == pytest.approx(0.01 * 20 * 1297 / 8, rel=0.01)
    assert second == pytest.approx(0.02 * runs.updates(8), rel=0.3)


def test_a_searched_length_has_the_recipes_decay_and_no_halving(tmp_path, fake):
    runs = fake()
    found = study(tmp_path, batches=[8, 16], trials=6, space=[Range("budget.updates", 100, 4000)])
    assert {recipe.schedule.decay.kind for recipe, _ in runs.calls} == {RECIPE.schedule.decay.kind}
    assert len({recipe.num_updates for recipe, _ in runs.calls}) > 4
    assert "a linear decay over a length that is searched" in next(found.doubts())
    assert "halved" not in " ".join(found.doubts())


def test_real_runs_are_kept_and_not_repeated_and_a_pool_makes_them(tmp_path):
    said = []
    given = {"batches": [16, 64, 256, 1024], "target": 0.85, "trials": 4, "max_epochs": 4}
    first = study(tmp_path, **given, say=said.append, pool=Parallel(2))
    assert any("batch 16, lr" in line for line in said)
    said.clear()
    again = study(tmp_path, **given, say=said.append)
    assert said == []
    assert again.to_dict() == first.to_dict()
    stored = json.loads((tmp_path / "steps.json").read_text())
    assert {name: stored[name] for name in first.to_dict()} == json.loads(json.dumps(first.to_dict()))
    with pytest.raises(UserError, match="was begun with another target"):
        study(tmp_path, **{**given, "target": 0.86})
    ElementTree = pytest.importorskip("xml.etree.ElementTree")
    assert ElementTree.fromstring(draw_steps({"sgd": stored, "<b>": stored})).tag.endswith("svg")


def test_the_cheap_answer_is_near_the_full_one(tmp_path, fake):
    """`critical` searches rates alone, at the recipe's momentum: where that is the best one, it finds the same critical batch."""
    runs = fake()
    runs.updates = lambda batch: 100 * (1 + 100 / batch)
    full = study(tmp_path / "full", batches=[8, 32, 128, 512], trials=32).fit.critical_batch
    cheap = critical("digits/mlp", RECIPE, batches=[8, 32, 128, 512], target=0.9, quiet=True, out=tmp_path / "cheap", max_epochs=100)
    assert full.value == pytest.approx(100, rel=0.4)
    assert cheap.fit.critical_batch.value == pytest.approx(100, rel=0.4)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"batches": [8]}, "two different ones at least"),
        ({"batches": [0, 8]}, "batches"),
        ({"trials": 0}, "trials"),
        ({"max_epochs": -1}, "max_epochs"),
        ({"target": 1.5}, "target"),
        ({"storage": "nothing"}, "storage nothing: can't be used"),
        ({"space": [Range("optimizer.beta7", 1, 2)]}, "beta7"),
    ],
)
def test_bad_arguments(tmp_path, changes, why):
    with pytest.raises(UserError, match=why):
        study(tmp_path, **changes)


def test_a_missing_package_is_told_first(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"a search of steps to a target needs optuna"):
        study(tmp_path)


def test_as_a_command(tmp_path):
    command = ["steps", "digits/mlp", "--batches", "16..1024:4", "--target", "0.8", "--trials", "3", "--max-epochs", "2"]
    done = bigbatch(*command, "--search", "optimizer.lr=0.05:0.8", "--quiet", cwd=tmp_path)
    assert all(column.split()[0] in done.stdout for column in COLUMNS)
    folder = "runs/steps/digits-mlp"
    assert f"report: {folder}/report.html, plot: {folder}/steps.svg, numbers: {folder}/steps.json" in done.stdout
    assert (tmp_path / "runs/steps/digits-mlp/steps.svg").exists()
    again = bigbatch(*command, "--search", "optimizer.lr=0.05:0.8", "--json", "-", cwd=tmp_path)
    assert json.loads(again.stdout)["task"] == "digits/mlp"
    wrong = bigbatch("steps", "digits/mlp", "--batches", "8..x", "--target", "0.8", cwd=tmp_path, expect=2)
    assert "--batches 8..x: must be batches such as 64,256,1024, or a range" in wrong.stderr
