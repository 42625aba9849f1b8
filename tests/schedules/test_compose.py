from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.core.clock import Clock
from bigbatch.schedules import (
    constant,
    constant_warmup,
    cosine,
    gradual_warmup,
    linear,
    polynomial,
    product,
    sequence,
    step_decay,
)

N = 10_000
WARMUPS = {
    "gradual from zero": partial(gradual_warmup, warmup_samples=2_000),
    "gradual from 1/8": partial(gradual_warmup, warmup_samples=2_000, start_factor=1 / 8),
}
DECAYS = {
    "constant": constant,
    "step": partial(step_decay, milestones=[5_000, 8_000]),
    "polynomial": partial(polynomial, total_samples=N),
    "cosine": partial(cosine, total_samples=N),
    "linear": partial(linear, total_samples=N, final_factor=0.01),
}


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("warmup", WARMUPS)
def test_is_continuous_at_the_joint_and_at_the_end(warmup, decay):
    schedule = product(WARMUPS[warmup], DECAYS[decay])
    for joint in (2_000, N):
        before, at, after = (schedule(Clock(samples=joint + d)) for d in (-1, 0, 1))
        assert abs(at - before) < 1e-3
        assert abs(after - at) < 1e-3


def test_constant_warmup_jumps_once_as_the_paper_says():
    schedule = product(partial(constant_warmup, warmup_samples=2_000, factor=1 / 8), constant)
    assert (schedule(Clock(samples=1_999)), schedule(Clock(samples=2_000))) == (1 / 8, 1)


@pytest.mark.parametrize("decay", DECAYS)
def test_after_the_warmup_the_decay_stands_where_it_would_without(decay):
    schedule = product(WARMUPS["gradual from zero"], DECAYS[decay])
    for s in (2_000, 5_000, 7_777, N):
        assert schedule(Clock(samples=s)) == DECAYS[decay](Clock(samples=s))


@given(batches=st.lists(st.sampled_from([32, 128, 512, 2048]), min_size=1, max_size=30))
def test_a_changed_batch_does_not_move_it_in_samples(batches):
    """Whatever batches lead to a place, the factor there is a function of the samples alone."""
    schedule = product(WARMUPS["gradual from 1/8"], DECAYS["cosine"])
    clock = Clock()
    for batch in batches:
        clock = clock.after(batch)
    assert schedule(clock) == schedule(Clock(samples=sum(batches), updates=1))


def test_sequence_is_continuous_where_its_parts_meet():
    """Warm up, stay, come down: each part on its own clock."""
    schedule = sequence([(partial(gradual_warmup, warmup_samples=1_000), 1_000), (constant, 2_000)], partial(linear, total_samples=1_000))
    got = [schedule(Clock(samples=s)) for s in (0, 500, 999, 1_000, 2_999, 3_000, 3_500, 4_000)]
    assert got == pytest.approx([0, 0.5, 0.999, 1, 1, 1, 0.5, 0])
