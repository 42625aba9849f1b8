"""What tests of several rules share."""

import json
import math

import numpy as np
import pytest

from bigbatch.batching import UpdateMeasurement


def updates(number, *, seed=0, global_batch=64):
    """Random updates as they come: a signal that is negative now and then, all fields measured."""
    draw = np.random.default_rng(seed)
    return [
        UpdateMeasurement(
            global_batch=global_batch,
            lr=float(draw.uniform(0.01, 0.1)),
            loss=float(draw.uniform(0.5, 2.0)),
            signal=float(draw.normal(1.0, 1.0)),
            noise=float(draw.normal(500.0, 200.0)),
            noise_along=float(draw.normal(100.0, 50.0)),
            seconds=float(draw.uniform(0.1, 0.2)),
        )
        for _ in range(number)
    ]


def show(rule, number=20, **seen):
    """Let a rule see the same update several times."""
    for _ in range(number):
        rule.observe(UpdateMeasurement(**{"global_batch": 64, **seen}))
    return rule


def check_says_nothing_before_20_updates(rule, **seen):
    for _ in range(19):
        show(rule, 1, **seen)
        assert rule.propose(64) is None
    assert show(rule, 1, **seen).propose(64) is not None


def check_resumes(make, seen=None):
    """State taken mid-way, through JSON, and loaded into a new rule: from there on the two can't be told apart."""
    seen = seen or updates(90)
    whole, first, second = make(), make(), make()
    for update in seen[:40]:
        whole.observe(update)
        first.observe(update)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == whole.state_dict()
    for update in seen[40:]:
        whole.observe(update)
        second.observe(update)
        assert second.state_dict() == whole.state_dict()
    assert make().state_dict() != whole.state_dict()
    assert second.propose(64) == whole.propose(64)


def check_skips_what_was_not_measured(make, fields=("signal", "noise"), num_skipped=lambda rule: rule.smoothed.num_skipped):
    """NaN and infinity in any of the fields: the update is as good as not seen, and counted."""
    clean, dirty = make(), make()
    for i, update in enumerate(updates(60)):
        clean.observe(update)
        dirty.observe(update)
        if i % 3 == 0:
            bad = (math.nan, math.inf, -math.inf)[i // 3 % 3]
            dirty.observe(update._replace(**{fields[i // 3 % len(fields)]: bad}))
    assert num_skipped(dirty) == 20
    assert num_skipped(clean) == 0
    assert dirty.propose(64) == clean.propose(64)


def check_survives_a_start_without_signal(rule, **seen):
    """Negative estimates at the start: the wish is a number or infinity, never NaN, never below zero; and it recovers."""
    show(rule, 20, **{"signal": -1.0, "noise": -5.0, **seen})
    assert rule.propose(64).global_batch >= 0
    show(rule, 2000, **{"signal": 1.0, "noise": 300.0, **seen})
    wish = rule.propose(64)
    assert 0 < wish.global_batch < math.inf
    return wish.global_batch


approx = pytest.approx
