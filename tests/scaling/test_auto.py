"""What auto chooses, what it says of its evidence, and that the evidence is what the study's records say."""

import json
from pathlib import Path

import pytest

from bigbatch import Recipe, plan
from bigbatch.core.storage.json_lines import readable_lines
from bigbatch.scaling.auto import fallbacks, keeper
from bigbatch.scaling.evidence import EVIDENCE, STUDY
from bigbatch.study.grid import verdict_of
from bigbatch.tasks import load_task, metric_of

MLP = Recipe.named("fashion_mnist/mlp")
ROOT = Path(__file__).resolve().parents[2]
ADAMW = {"optimizer.name": "adamw", "optimizer.lr": 1e-3}


@pytest.mark.parametrize(
    ("changes", "batch", "rule", "reason"),
    [
        ({}, 512, EVIDENCE["sgd"].rule, "held furthest, untuned, on perceptrons"),
        (ADAMW, 1024, EVIDENCE["adamw"].rule, "with adamw"),
        ({"optimizer.name": "muon", "optimizer.adam_lr": 0.01}, 1024, "muon", "with muon"),
        ({"optimizer.name": "lamb"}, 1024, "sqrt", "no study stands behind a reference with lamb; sqrt keeps it"),
        ({**ADAMW, "optimizer.name": "adamp"}, 1024, "adamw", "no study stands behind a reference with adamp"),
        ({}, 64, "sqrt", "does not grow"),
        (ADAMW, 64, "adamw", "does not grow"),
        (ADAMW, 192, "adamw", "its optimizer is kept"),
    ],
)
def test_chooses_what_the_studies_found(changes, batch, rule, reason):
    planned = plan(MLP.replace(changes), global_batch=batch)
    assert planned.rule == rule
    assert reason in planned.reason


def kinds(recipe, **arguments):
    return [warning.kind for warning in plan(recipe, **arguments).warnings]


def test_a_change_of_optimizer_is_said_first():
    for recipe, new in ((MLP, "muon"), (Recipe.named("text/gpt"), "lamb")):
        (warning, *_) = plan(recipe, global_batch=4 * recipe.batch.global_batch, rule=new).warnings
        assert warning.kind == "optimizer"
        assert f"from {recipe.optimizer.name} to {new}" in warning
        assert f"--rule {keeper(recipe.optimizer.name)}" in warning
    assert "optimizer" not in kinds(MLP, global_batch=512, rule="legw")
    assert "optimizer" not in kinds(MLP, global_batch=512, overrides={"optimizer.name": "adam", "optimizer.lr": 0.001})


def test_says_where_nothing_was_measured():
    assert "evidence" not in kinds(MLP, global_batch=1024)
    assert "evidence" in kinds(MLP.replace({"optimizer.name": "lars"}), global_batch=1024)
    long = Recipe.named("text/gpt").replace({"budget.epochs": 2_000})  # millions of updates
    assert long.num_updates > 3e6
    (warning,) = [w for w in plan(long, global_batch=64).warnings if w.kind == "evidence"]
    assert "3,871,000 updates, and the longest with adamw that was studied" in warning


@pytest.mark.parametrize("name", EVIDENCE)
def test_says_where_nothing_holds(name):
    evidence = EVIDENCE[name]
    recipe = Recipe.named(recipe_of(evidence.tasks[-1], name))
    batch = recipe.batch.global_batch
    assert "reach" in kinds(recipe, global_batch=round(batch * evidence.reach) * 4, rule=evidence.rule)
    if evidence.reach > 1:
        assert "reach" not in kinds(recipe, global_batch=round(batch * evidence.reach), rule=evidence.rule)


def recipe_of(task, optimizer):
    """Name of the task's recipe with an optimizer."""
    return task if Recipe.named(task).optimizer.name == optimizer else f"{task}-{optimizer}"


def runs_of(name, method, multiple):
    """The study's lines of a cell; where there are runs whose decay follows the warm-up, those alone."""
    lines = readable_lines(ROOT / STUDY / f"{name.replace('/', '-')}.jsonl")
    runs = [line for line in lines if line["key"] == {"task": name, "method": method, "multiple": multiple}]
    return [line for line in runs if "combine" in line["recipe"]["schedule"]] or runs


def reference_of(name):
    if runs := runs_of(name, "none", "1"):
        return runs
    scores = json.loads((ROOT / "studies/reference_recipes" / name / "results.json").read_text())["test_accuracy"]
    return [{"test_score": score / 100, "diverged": False} for score in scores]


def verdict(name, method, multiple):
    metric = metric_of(load_task(Recipe.named(name).task).metric)
    runs = runs_of(name, method, multiple)
    assert len(runs) >= 3
    return verdict_of(runs, reference_of(name), margin=metric.margin, metric=metric).outcome


CLAIMS = [(name, recipe_of(task, name)) for name, evidence in EVIDENCE.items() for task in evidence.tasks]


@pytest.mark.parametrize(("optimizer", "name"), CLAIMS)
def test_no_loss_within_the_reach_by_the_records(optimizer, name):
    evidence = EVIDENCE[optimizer]
    if evidence.reach > 1:
        assert verdict(name, evidence.rule, f"{evidence.reach:g}") != "lost"


@pytest.mark.parametrize("optimizer", EVIDENCE)
def test_beyond_the_reach_it_lost_somewhere_by_the_records(optimizer):
    evidence = EVIDENCE[optimizer]
    names = [recipe_of(task, optimizer) for task in evidence.tasks]
    measured = [(m, name) for m in (4, 16, 64) if m > evidence.reach for name in names if len(runs_of(name, evidence.rule, str(m))) >= 3]
    nearest, _ = min(measured)
    assert "lost" in [verdict(name, evidence.rule, str(m)) for m, name in measured if m == nearest]


def test_what_the_length_of_a_warm_up_does_by_the_records():
    """What the warning "long warm-up" says: with AdamW at 16 times the batch, as many updates against as many samples."""

    def loss(name, method):
        (score,) = [line["test_score"] for line in runs_of(name, method, "16") if line["seed"] == 0]
        return score

    lstm, gpt = (loss(name, "adamw") - loss(name, "adamw, warm-up in samples") for name in ("text/lstm", "text/gpt"))
    assert round(lstm, 1) == 1.4
    assert gpt < -0.4
    (warning,) = [w for w in plan(Recipe.named("text/lstm"), global_batch=256, rule="adamw").warnings if w.kind == "long warm-up"]
    assert f"{lstm:.1f} nats per byte worse" in warning


@pytest.mark.parametrize(("optimizer", "name"), CLAIMS)
def test_references_that_were_studied(optimizer, name):
    recipe = Recipe.named(name)
    assert recipe.optimizer.name == optimizer
    assert recipe.num_updates <= EVIDENCE[optimizer].most_updates


def test_fallbacks_keep_the_optimizer():
    for name in ("sgd", "adamw", "muon", "lamb"):
        for rule in fallbacks(name):
            changes = {"optimizer.name": name} if name != "muon" else {"optimizer.name": name, "optimizer.adam_lr": 0.01}
            assert plan(MLP.replace(changes), global_batch=512, rule=rule).recipe.optimizer.name == name
