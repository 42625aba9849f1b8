import json
from pathlib import Path

import pytest

from bigbatch import Recipe, plan
from bigbatch.scaling.auto import LARGEST_WITHOUT_LOSS, STUDY
from bigbatch.study.noninferiority import noninferiority

MLP = Recipe.named("fashion_mnist/mlp")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("changes", "batch", "rule", "reason"),
    [
        ({}, 512, "muon", "held accuracy furthest"),
        ({"optimizer.name": "adamw", "optimizer.lr": 1e-3}, 1024, "muon", "held accuracy furthest"),
        ({"optimizer.name": "muon", "optimizer.adam_lr": 0.01}, 1024, "muon", "Muon's already"),
        ({}, 64, "sqrt", "does not grow"),
    ],
)
def test_chooses_what_the_studies_found(changes, batch, rule, reason):
    planned = plan(MLP.replace(changes), global_batch=batch)
    assert planned.rule == rule
    assert reason in planned.reason


def test_says_where_nothing_holds():
    assert not any("times the batch" in w for w in plan(MLP, global_batch=128 * 16).warnings)
    assert any("64 times the batch: on short runs no method held" in w for w in plan(MLP, global_batch=128 * 64).warnings)


@pytest.mark.parametrize("task", ["digits/mlp", "fashion_mnist/mlp", "fashion_mnist/cnn", "fashion_mnist/lstm", "fashion_mnist/resnet8"])
def test_the_largest_multiple_is_what_the_records_say(task):
    """The claim in auto.py is read off the study's own lines: no loss beyond the margin at 16 times."""
    reference = json.loads((ROOT / "studies/reference_recipes" / task / "results.json").read_text())["test_accuracy"]
    lines = [json.loads(line) for line in (ROOT / STUDY / f"{task.replace('/', '-')}.jsonl").read_text().splitlines()]
    key = {"task": task, "method": "muon", "multiple": f"{LARGEST_WITHOUT_LOSS:g}"}
    runs = [line for line in lines if line["key"] == key]
    newer = [line for line in runs if "combine" in line["recipe"]["schedule"]]  # the decay follows the warm-up
    scores = [100 * line["test_score"] for line in newer or runs]
    assert len(scores) >= 5
    assert noninferiority(scores, reference, margin=0.5).outcome != "lost"
