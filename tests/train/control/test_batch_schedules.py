"""Schedules of the batch that are known beforehand, in a run: listed steps, a ramp, a late switch, and Seesaw."""

import pytest

from bigbatch import Recipe, fit
from bigbatch.core.clock import Clock
from bigbatch.train.control.build import build_scheduled_batch
from bigbatch.train.state.record import read_record

DIGITS = Recipe.named("digits/mlp").replace({"budget.epochs": 4, "batch.micro_batch": 32, "schedule.warmup.kind": "none"})  # 5,188 samples
FLAT = {"schedule.decay": {"kind": "constant"}}


@pytest.mark.parametrize(
    ("rule", "batches"),
    [
        ({"kind": "schedule", "steps": [[1000, 64], [3000, 128]]}, {32, 64, 128}),
        (
            {
                "kind": "ramp",
                "over_samples": 2000,
                "largest": 128,
            },
            {32, 48, 64, 80, 96, 112, 128},
        ),
        ({"kind": "late", "after": 0.5, "largest": 128}, {32, 128}),
        ({"kind": "seesaw", "largest": 128}, None),
    ],
    ids=["schedule", "ramp", "late", "seesaw"],
)
def test_a_run_follows_it(rule, batches, tmp_path):
    """Every update of a run has the rule's batch and rate; each sample is seen as often as without it."""
    recipe = DIGITS.replace({**({} if rule["kind"] == "seesaw" else FLAT), "batch.rule": rule})
    if rule["kind"] == "ramp":
        recipe = recipe.replace({"batch.micro_batch": 16})
    result = fit("digits/mlp", recipe, out=tmp_path, quiet=True, tensorboard=False, measure_test=False)
    lines = [line for line in read_record(tmp_path / "record.jsonl") if line["kind"] == "update"]
    assert result.samples == recipe.total_samples == lines[-1]["samples"]
    at = build_scheduled_batch(recipe)
    for number, line in enumerate(lines[:-1]):
        before = line["samples"] - line["global_batch"]
        batch, factor = at(Clock(before, number))
        assert line["global_batch"] == batch
        assert line["lr"] == pytest.approx(0.1 * factor, rel=1e-6)
    found = {line["global_batch"] for line in lines[:-1]}
    assert found == batches if batches else len(found) > 3
