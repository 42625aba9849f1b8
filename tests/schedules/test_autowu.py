import io
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import autowu as reference

from bigbatch.core.checks import Diverged, UserError
from bigbatch.core.clock import Clock
from bigbatch.schedules import AutoWU, ClockLR, set_lr
from bigbatch.schedules.autowu import Judgement, growth
from bigbatch.schedules.gaussian_process import Posterior, features
from bigbatch.schedules.loss_curve import blocks, curve_of, judge, scaled


def bowl(rate, best=0.03, noise=0.01, seed=0):
    """A loss that is flat at low rates, falls, is lowest at `best`, and rises; from 0.4 to 1.6 times `best` it is within 5 %."""
    at = math.log10(rate / best)
    chance = np.random.default_rng([seed, int(1e9 * rate) % 2**31]).normal()
    return (2.3 - 1.8 / (1 + 10 ** (-3 * (at + 1))) + 0.5 * max(0.0, at) ** 2) * (1 + noise * chance)


def run(autowu, loss_of, total=20_000, batch=100, clock=Clock()):  # noqa: B008
    """Rates of the updates from the clock to the end, by the paper's peak of 1."""
    rates = []
    while clock.samples < total:
        rates.append(autowu(clock))
        autowu.observe(clock, loss_of(rates[-1]))
        clock = clock.after(batch)
    return rates


def test_hand_worked():
    assert [growth(part, 1e-4) for part in (0, 0.25, 0.5, 1, 1.5)] == pytest.approx([1e-4, 1e-3, 1e-2, 1, 1], rel=1e-12)
    y = scaled([3.0] * 9 + [1.0] + [100.0])  # what is above 3 is cut there; mean square of ten times 3 and once 1 = 91/11
    assert y == pytest.approx(np.array([3] * 9 + [1, 3]) / math.sqrt(91 / 11))
    # a certain curve that falls by 1 from 0 to 1/2 and rises by 0.2 to 1: the rise is sqrt(1e-4) = 0.01 wide
    w = np.linalg.lstsq(features([0, 0.5, 1]), np.array([1.0, 0.0, 0.0164]), rcond=None)[0]
    places = features(np.linspace(0, 1, 200)) @ w
    certain = Posterior(0.0, np.ones(1), np.eye(16), w[:, None], np.zeros((16, 1)), *np.zeros((3, 1)))
    curve = curve_of([certain])
    assert curve.turned == pytest.approx(0.5 * math.erfc(-(places[-1] - places.min()) / 0.01 / math.sqrt(2)), abs=1e-9)
    assert curve.fell == pytest.approx(1)
    assert curve.lowest == np.argmin(places) / 199


def test_equals_the_reference_for_a_run():
    """A run of 120 updates of the reference's own GP and this file's: the same switch, and rates that differ by what fits differ."""
    losses = [bowl(10 ** (-5 + 5 * t / 60), seed=3) for t in range(120)]
    want = reference.run(lambda rate, t: losses[t], total=12_000, batch=100)
    autowu = AutoWU(total_samples=12_000)
    got, clock = [], Clock()
    for loss in losses:
        got.append(autowu(clock))
        autowu.observe(clock, loss)
        clock = clock.after(100)
    assert autowu.switch.reason == "the loss has turned"
    assert 0.01 < autowu.switch.factor < 0.06  # the curve is flat there
    assert got == pytest.approx(want, rel=2e-3)


@pytest.mark.parametrize("seed", range(4))
def test_finds_the_minimum(seed):
    autowu = AutoWU(total_samples=20_000)
    rates = run(autowu, lambda rate: bowl(rate, seed=seed))
    assert autowu.switch.reason == "the loss has turned"
    assert 0.012 < autowu.switch.factor < 0.05
    assert max(rates) < 0.5, "the warm-up went on after the minimum"
    at = rates.index(max(rates)) + 1
    assert rates[at] == pytest.approx(autowu.switch.factor, rel=1e-3)
    assert rates[-1] < 1e-3 * autowu.switch.factor
    assert sorted(rates[at:], reverse=True) == rates[at:]


def waves(correlation, sd, num, seed):
    """Stationary AR(1) noise."""
    chance = np.random.default_rng(seed)
    noise = sd * chance.normal(size=num)
    for t in range(1, num):
        noise[t] = correlation * noise[t - 1] + math.sqrt(1 - correlation**2) * noise[t]
    return noise


def switch_of(curve, noise):
    """Of a run with a mean loss that is a function of the rate, and noise."""
    autowu, clock = AutoWU(total_samples=len(noise)), Clock()
    while autowu.switch is None:
        autowu.observe(clock, curve(autowu(clock)) + noise[clock.updates])
        clock = clock.after(1)
    return autowu.switch


FLAT, FALLING = (lambda _: 2.3), (lambda rate: 2 - 0.1 * math.log10(rate))


@pytest.mark.parametrize(("curve", "correlation", "sd"), [(FLAT, 0.0, 0.3), (FLAT, 0.9, 0.1), (FALLING, 0.9, 0.3)])
def test_noise_is_hardly_ever_a_minimum(curve, correlation, sd):
    """At most about 5 % of runs (benchmarks/autowu_false_minima.py); the paper's white noise has 6 or more of 8 at correlation 0.9."""
    switches = [switch_of(curve, waves(correlation, sd, 200, seed)) for seed in range(8)]
    assert sum(switch.reason == "the loss has turned" for switch in switches) <= 2


@pytest.mark.parametrize(("correlation", "sd"), [(0.0, 0.1), (0.9, 0.1)])
def test_a_minimum_is_found_through_noise(correlation, sd):
    """Found before half of the run, and near: within a factor of 4 of where the bowl is lowest, 0.03."""
    for seed in range(4):
        switch = switch_of(lambda rate: bowl(rate, noise=0), waves(correlation, sd, 200, seed))
        assert switch.reason == "the loss has turned"
        assert 0.0075 < switch.factor < 0.12


def test_a_loss_that_never_moved_goes_on_at_the_peak_and_says_so():
    for noise in (np.zeros(60), waves(0.0, 0.2, 60, 0), waves(0.9, 0.2, 60, 1)):
        switch = switch_of(lambda _: 2.3, noise)
        assert switch.reason == (
            "0.5 of the run is over; the loss neither fell nor rose: raise the peak rate, or see whether the model can learn at all"
        )
        assert switch.factor == pytest.approx(1.0)


def test_a_loss_that_only_rose_goes_on_before_the_rise_and_says_so():
    """Flat up to 0.001 of the peak, then rising: what harmed is not gone back to, and what did not harm is not gone below by far."""
    switch = switch_of(lambda rate: 0.5 + 2 * max(0.0, math.log10(rate) + 3), waves(0.5, 0.02, 200, 0))
    assert 2e-4 < switch.factor < 3e-3
    assert switch.reason == (
        f"0.5 of the run is over; the loss never fell and rose above {switch.factor:.2g} of the peak rate: lower the peak rate"
    )
    from_start = switch_of(lambda rate: 2.3 + 0.3 * (math.log10(rate) + 5), waves(0.5, 0.02, 200, 0))
    assert from_start.factor < 1e-3
    assert "the loss never fell and rose above" in from_start.reason


def test_a_loss_that_is_lost_before_it_fell_goes_on_at_a_tenth():
    switch = switch_of(lambda rate: 2.3 if rate < 0.01 else math.inf, waves(0.0, 0.02, 200, 0))
    assert switch.factor == pytest.approx(0.001, rel=0.15)  # an update is a ninth of a decade's logarithm
    assert switch.reason.startswith("the loss is not finite; the loss had not fallen before: lower the peak rate")


def test_half_way_goes_back_to_the_minimum_too():
    """A rise too late for the patience: the released code would decay from the peak."""
    autowu = AutoWU(total_samples=20_000, patience=100)
    rates = run(autowu, bowl)
    assert autowu.switch.reason == "0.5 of the run is over; the loss fell and had not surely turned"
    assert autowu.switch.samples == 10_000
    assert max(rates) == pytest.approx(1.0)
    assert 0.01 < autowu.switch.factor < 0.06
    still_falling = AutoWU(total_samples=20_000)
    run(still_falling, lambda rate: 2 - 0.1 * math.log10(rate))
    assert still_falling.switch.factor == pytest.approx(1.0), "what is lowest at the end stays there"


def test_a_loss_that_is_not_finite_ends_the_warm_up():
    autowu = AutoWU(total_samples=20_000)
    rates = run(autowu, lambda rate: bowl(rate) if rate < 0.06 else math.inf)
    assert autowu.switch.reason == "the loss is not finite"
    assert 0.012 < autowu.switch.factor < 0.05
    assert sum(rate > 0.06 for rate in rates) == 1


@pytest.mark.parametrize("patience", [3, 30])
def test_an_explosion_does_not_bend_the_curve(patience):
    autowu = AutoWU(total_samples=20_000, patience=patience)
    run(autowu, lambda rate: bowl(rate) if rate < 0.06 else 1e6 * rate**4)
    assert 0.01 < autowu.switch.factor < 0.05


def test_too_early_to_know_better():
    with pytest.raises(Diverged, match="loss = nan at update 10: AutoWU has seen too few; lower grow_from") as caught:
        run(AutoWU(total_samples=20_000), lambda rate: 2.3 if rate < 2.6e-5 else math.nan)
    assert caught.value.update == 10


def test_constant_then_cosine():
    autowu = AutoWU(total_samples=20_000, decay="constant_cosine")
    rates = run(autowu, bowl)
    at = round(autowu.switch.samples / 100) + 1
    assert rates[at:160] == [autowu.switch.factor] * (160 - at)
    assert rates[180] == pytest.approx(autowu.switch.factor / 2)


def test_parts_without_losses_are_left_out():
    """A batch that doubled: places 0, 1/3, 1 fill parts 0, 1 and 2 of 3; of 0, 0.1, 1, part 1 is empty."""
    assert blocks(np.array([0, 1 / 3, 1]), np.array([1.0, 2, 3]))[2].tolist() == [0, 1, 2]
    where, what, parts = blocks(np.array([0, 0.1, 1]), np.array([1.0, 2, 3]))
    assert (where.tolist(), what.tolist(), parts.tolist()) == ([0.05, 1.0], [1.5, 3.0], [0, 2])


def test_short_runs():
    fifty = AutoWU(total_samples=5_000)
    run(fifty, bowl, total=5_000)
    assert fifty.switch is not None
    assert 0.01 < fifty.switch.factor < 0.08
    for updates in (2, 3, 10):
        few = AutoWU(total_samples=100 * updates)
        rates = run(few, bowl, total=100 * updates)
        assert few.switch.reason.startswith("0.5 of the run is over")
        assert all(0 < rate <= 1 for rate in rates)


def test_more_losses_than_blocks():
    """1,400 losses: means over 32 equal parts."""
    losses = np.array([bowl(10 ** (-5 + 5 * t / 1500), noise=0.1, seed=7) for t in range(1400)])
    x = np.arange(1400) / 1399
    where, what, parts = blocks(x, losses)
    for i in range(32):
        inside = [t for t in range(1400) if 32 * t // 1399 == i or (i == 31 and t == 1399)]
        assert len(inside) in (43, 44, 45)
        assert (where[i], what[i], parts[i]) == (pytest.approx(x[inside].mean()), pytest.approx(losses[inside].mean()), i)
    curve = judge(x, losses)
    assert curve.turned > 0.95
    assert 10 ** (-5 * (1 - curve.lowest * 1399 / 1500)) == pytest.approx(0.02, rel=0.6)
    autowu = AutoWU(total_samples=3_000)
    for t, loss in enumerate(losses):
        autowu.add_loss(Clock(t, t), loss)
    assert autowu.judgement().factor == pytest.approx(10 ** (-5 * (1 - curve.lowest * 1399 / 1500)))


@settings(max_examples=25, deadline=None)
@given(times=st.integers(-10, 10).map(lambda power: 2.0**power), seed=st.integers(0, 100))
def test_the_unit_of_the_loss_does_not_matter(times, seed):
    """Powers of two, which round nothing: by others a vote near its bound might change sides."""
    losses = [bowl(10 ** (-5 + 5 * t / 60), seed=seed) for t in range(55)]
    x = np.arange(55) / 54
    assert judge(x, losses) == pytest.approx(judge(x, [times * y for y in losses]), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(losses=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40), total=st.integers(1, 10**9), late=st.floats(0, 1))
def test_any_losses_give_rates_in_range(losses, total, late):
    autowu = AutoWU(total_samples=total)
    batch = max(1, total // len(losses))
    clock = Clock()
    for loss in losses:
        assert 0 <= autowu(clock) <= 1
        autowu.observe(clock, loss)
        clock = clock.after(batch)
    assert 0 <= autowu(Clock(round(total * late), 1)) <= 1


def test_a_batch_that_grows_does_not_move_the_minimum():
    autowu, clock = AutoWU(total_samples=20_000), Clock()
    while clock.samples < 20_000:
        autowu.observe(clock, bowl(autowu(clock)))
        clock = clock.after(50 if clock.samples < 5_000 else 200)
    assert autowu.switch.reason == "the loss has turned"
    assert 0.012 < autowu.switch.factor < 0.05


@pytest.mark.bit_for_bit
@pytest.mark.parametrize("stop", [0, 3, 60, 150, 170, 199])
def test_resumed_anywhere_it_is_the_same_schedule(stop):
    whole = run(AutoWU(total_samples=20_000), bowl)
    first, clock = AutoWU(total_samples=20_000), Clock()
    for _ in range(stop):
        first.observe(clock, bowl(first(clock)))
        clock = clock.after(100)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = AutoWU(total_samples=20_000)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert run(resumed, bowl, clock=clock) == whole[stop:]


def test_one_decides_for_all():
    """Three copies see the same losses; the first's judgement, sent as text, makes the same switch of each."""
    copies, clock = [AutoWU(total_samples=20_000) for _ in range(3)], Clock()
    while copies[0].switch is None:
        rate = copies[0](clock)
        for each in copies:
            each.add_loss(clock, bowl(rate))
        assert len({each.due(clock) for each in copies}) == 1
        if copies[0].due(clock):
            told = json.dumps(copies[0].judgement())
            for each in copies:
                each.adopt(clock, Judgement(*json.loads(told)))
        clock = clock.after(100)
    assert len({each.switch for each in copies}) == 1
    assert len({each(clock) for each in copies}) == 1


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_any_optimizer_and_groups_keep_their_ratios(kind):
    a, b = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = kind([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.25}])
    autowu = AutoWU(total_samples=20_000)
    scheduler = ClockLR(optimizer, autowu, global_batch=100)
    while scheduler.clock.samples < 20_000:
        lrs = [group["lr"] for group in optimizer.param_groups]
        assert lrs[1] == pytest.approx(lrs[0] / 4)
        assert lrs[0] == pytest.approx(autowu(scheduler.clock))
        optimizer.step()
        autowu.observe(scheduler.clock, bowl(lrs[0]))
        scheduler.step()
    assert autowu.switch.reason == "the loss has turned"
    set_lr(optimizer, 1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.25]


def test_momentum_is_corrected_at_the_switch():
    """For optimizers with the rate inside the momentum: the one update after the switch has momentum times new over old rate."""
    weights = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=1.0, momentum=0.9)
    autowu = AutoWU(total_samples=20_000)
    scheduler = ClockLR(optimizer, autowu, global_batch=100, momentum_correction=True)
    while autowu.switch is None:
        before = optimizer.param_groups[0]["lr"]
        optimizer.step()
        autowu.observe(scheduler.clock, bowl(before))
        scheduler.step()
    after = optimizer.param_groups[0]["lr"]
    assert after < before
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.9 * after / before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_samples": 0}, "total_samples = 0: must be a finite number above zero"),
        ({"grow_from": 0.0}, "grow_from = 0.0: must lie between 0 and 1; the paper's is 1e-05"),
        ({"share": 1.0}, "share = 1.0: must lie between 0 and 1; the paper's is 0.5"),
        ({"confidence": 1.5}, "confidence = 1.5: must lie between 0 and 1; the paper's is 0.95"),
        ({"patience": 0}, "patience = 0: must be a finite number above zero; give a whole number"),
        ({"tests": -1}, "tests = -1: must be"),
        ({"decay": "cosin"}, "unknown decay 'cosin': did you mean 'cosine'?"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(UserError) as caught:
        AutoWU(**{"total_samples": 100, **settings})
    assert message in str(caught.value)
