"""A source of the batch, a source of the rate and measurements: each alone, any with any."""

import itertools

import pytest

from bigbatch.batching.adascale import AdaScale
from bigbatch.batching.decision import Bounds, Proposal, UpdateMeasurement
from bigbatch.comm.ranks import SINGLE_PROCESS
from bigbatch.core.clock import Clock
from bigbatch.train.control.batch_source import BatchSource, ScheduledBatch
from bigbatch.train.control.control import Control
from bigbatch.train.control.measured_batch import MeasuredBatch
from bigbatch.train.control.rate_source import GainRate, RateOfDecision, RateSource, ScaledRate

TOTAL = 1000


class Doubles:
    """A rule that asks for twice the batch whenever it is asked."""

    def __init__(self):
        self.seen = 0

    def observe(self, seen):
        self.seen += 1

    def propose(self, global_batch):
        return Proposal(2 * global_batch, "twice")

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def halved(clock):
    return 0.5


def grown(clock):
    """100 samples from sample 200 on, at a quarter of the rate."""
    return (100, 0.25) if clock.samples >= 200 else (50, 0.5)


BATCHES = {
    "fixed": lambda: BatchSource(50),
    "scheduled": lambda: ScheduledBatch(grown, 50),
    "measured": lambda: MeasuredBatch(Doubles(), Bounds(50, 200, 1), global_batch=50, every_updates=2, epoch=500, ranks=SINGLE_PROCESS),
}
RATES = {
    "schedule": lambda: RateSource(halved, TOTAL),
    "scaled": lambda: ScaledRate(halved, TOTAL, lambda batch: batch / 50),
    "of the decision": lambda: RateOfDecision(halved, TOTAL, lambda batch: batch / 50),
    "gain": lambda: GainRate(halved, TOTAL, AdaScale(base_batch=25)),
}


def run(control, clock=Clock(), updates=10**6):  # noqa: B008
    """Updates of (samples, factor), as the loop makes them, and the clock after the last."""
    made = []
    while not control.is_over(clock) and len(made) < updates:
        control.before_update(clock)
        num_samples = control.num_samples(clock)
        made.append((num_samples, control.lr_factor(clock)))
        clock = clock.after(num_samples)
        control.rate.advance(num_samples)
        seen = UpdateMeasurement(num_samples, lr=1.0, seconds=1.0, loss=1.0, signal=1.0, noise=25.0)
        control.batch.observe(seen)
        control.rate.observe(seen)
    return made, clock


def test_batches_are_the_sources():
    sizes = {name: [n for n, _ in run(Control(make(), RATES["schedule"](), TOTAL))[0]] for name, make in BATCHES.items()}
    assert sizes == {"fixed": [50] * 20, "scheduled": [50] * 4 + [100] * 8, "measured": [50] * 2 + [100] * 2 + [200] * 3 + [100]}


@pytest.mark.parametrize("batch", BATCHES)
def test_rates_go_with_any_batch(batch):
    factors = {name: run(Control(BATCHES[batch](), make(), TOTAL))[0] for name, make in RATES.items()}
    wanted = {"fixed": [1.0] * 20, "scheduled": [1.0] * 4 + [2.0] * 8, "measured": [1.0] * 2 + [2.0] * 2 + [4.0] * 4}[batch]
    assert [factor for _, factor in factors["schedule"]] == [0.5] * len(wanted)
    assert [factor for _, factor in factors["scaled"]] == [0.5 * times for times in wanted]
    assert [factor for _, factor in factors["of the decision"]] == [0.5 * times for times in wanted]


@pytest.mark.parametrize("batch", BATCHES)
def test_a_gain_is_of_the_batch_that_is_made_and_ends_the_run_by_its_own_time(batch):
    """With |G|^2 = 1 and tr(S) = 25: r = 2 / (25 / B + 1). Nothing is known before the first update: its gain is 1."""
    made, _ = run(Control(BATCHES[batch](), RATES["gain"](), TOTAL))
    gains = [1.0] + [2 / (25 / num_samples + 1) for num_samples, _ in made[1:]]
    assert [factor for _, factor in made] == pytest.approx([0.5 * gain for gain in gains])
    progress = [25 * total for total in itertools.accumulate(gains)]
    assert progress[-2] < TOTAL - 0.5 <= progress[-1]  # to a sample


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("batch", BATCHES)
def test_it_goes_on_from_its_state(batch, rate):
    whole, _ = run(Control(BATCHES[batch](), RATES[rate](), TOTAL))
    first = Control(BATCHES[batch](), RATES[rate](), TOTAL)
    begun, clock = run(first, updates=3)
    second = Control(BATCHES[batch](), RATES[rate](), TOTAL)
    second.load_state_dict(first.state_dict())
    assert begun + run(second, clock)[0] == whole


@pytest.mark.parametrize("rate", ["schedule", "scaled"])
def test_what_is_read_ahead_is_what_is_made(rate):
    control = Control(BATCHES["scheduled"](), RATES[rate](), TOTAL)
    assert list(control.upcoming(Clock())) == [n for n, _ in run(control)[0]]
