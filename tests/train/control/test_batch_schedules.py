"""Schedules of the batch that are known beforehand, in a run: listed steps, a ramp, a late switch, and Seesaw, each from its formula."""

import math

import pytest

from bigbatch import Recipe, fit
from bigbatch.train.state.record import read_record

TOTAL, FIRST, UNIT = 5188, 32, 16  # four epochs of 1,297 samples
DIGITS = Recipe.named("digits/mlp").replace({"budget.epochs": 4, "batch.micro_batch": UNIT, "schedule.warmup.kind": "none"})


def linear(samples):
    """The rate's decay."""
    return 1 - samples / TOTAL


def cosine(samples):
    return 0.05 + 0.95 * (1 + math.cos(math.pi * samples / TOTAL)) / 2


def whole(batch):
    """The multiple of the unit next to a batch, the larger of two."""
    return UNIT * math.floor(batch / UNIT + 0.5)


def listed(samples):
    batch = FIRST if samples < 1000 else 70 if samples < 3000 else 128
    return batch, linear(samples) * (batch / FIRST) ** 0.5


def ramp(samples):
    batch = whole(FIRST + (120 - FIRST) * samples / 2000) if samples < 2000 else 120
    return batch, linear(samples) * batch / FIRST


def ramp_alone(samples):
    batch = whole(FIRST + (120 - FIRST) * samples / 9000)
    return batch, linear(samples)


def late(samples):
    batch = FIRST if samples < 0.6 * TOTAL else 100
    return batch, linear(samples) * (batch / FIRST) ** 0.5


def seesaw(samples):
    decay = cosine(samples)
    batch = min(whole(FIRST / decay), 256)
    return batch, decay * (batch / FIRST) ** 0.5


RULES = {
    "schedule": ({"kind": "schedule", "steps": [[1000, 70], [3000, 128]]}, listed, {32, 70, 128}),
    "ramp": ({"kind": "ramp", "over_samples": 2000, "largest": 120, "lr": "linear"}, ramp, {32, 48, 64, 80, 96, 112, 120}),
    "a ramp longer than the run": ({"kind": "ramp", "over_samples": 9000, "largest": 120, "lr": "none"}, ramp_alone, {32, 48, 64, 80}),
    "late": ({"kind": "late", "after": 0.6, "largest": 100}, late, {32, 100}),
    "seesaw": ({"kind": "seesaw", "largest": 256}, seesaw, {32, 48, 64, 80, 96, 112, 128, 144, 176, 208, 256}),
}


@pytest.mark.parametrize("name", RULES)
def test_a_run_follows_it(name, tmp_path):
    """Every update has the formula's batch and rate, the last one what is left of the samples."""
    rule, formula, sizes = RULES[name]
    decay = {"kind": "cosine", "final_factor": 0.05} if name == "seesaw" else {"kind": "linear"}
    recipe = DIGITS.replace({"schedule.decay": decay, "batch.rule": rule})
    result = fit("digits/mlp", recipe, out=tmp_path, quiet=True, tensorboard=False, measure_test=False)
    lines = [line for line in read_record(tmp_path / "record.jsonl") if line["kind"] == "update"]
    assert result.samples == recipe.total_samples == TOTAL
    seen, batches = 0, set()
    for line in lines:
        batch, factor = formula(seen)
        batches.add(batch)
        assert line["global_batch"] == min(batch, TOTAL - seen)
        assert line["lr"] == pytest.approx(recipe.optimizer.lr * factor, rel=1e-12)
        seen += line["global_batch"]
    assert seen == TOTAL == lines[-1]["samples"]
    assert batches == sizes


@pytest.mark.parametrize("kind", ["increase_batch", "seesaw"])
def test_a_tenth_of_the_training_set_bounds_what_follows_the_decay(kind):
    """1,297 / 10, in multiples of the micro-batch."""
    from bigbatch.core.clock import Clock
    from bigbatch.train.control.build import build_scheduled_batch

    recipe = DIGITS.replace({"batch.rule": {"kind": kind}, "schedule.decay": {"kind": "linear"}})
    assert build_scheduled_batch(recipe)(Clock(TOTAL - 1))[0] == 128
