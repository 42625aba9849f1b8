"""The monitor against gradients that are taken one group at a time, and its manners in a loop."""

import copy

import pytest
import torch
from torch import nn

from bigbatch.core.checks import UserError
from bigbatch.noise import DualNormMonitor, NoiseScaleMonitor, layers_of
from bigbatch.noise.dual_norm import alignment, dual_noise
from bigbatch.optim import Muon
from bigbatch.optim.muon.muon_split import muon_groups

NORMS = ("l1", "nuclear", "euclidean")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def data(samples, seed):
    return torch.randn(samples, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loss_of(model, x):
    return (model(x).squeeze(1) - x.sum(dim=1)).square().sum()


def run(model, monitor, x, passes, *, loss_scale=1.0, sizes=None):
    for piece in x.split(sizes or len(x) // passes):
        (loss_scale * loss_of(model, piece) / len(x)).backward()
        monitor.micro_batch(len(piece), divisor=len(x))
    monitor.update(loss_scale=loss_scale)
    model.zero_grad()


def gradients(model, x):
    return torch.autograd.grad(loss_of(model, x) / len(x), list(model.parameters()))


def by_hand(model, xs, passes, norm, steps):
    """Signal and noise of two looks, parameter by parameter: l1 for biases in the nuclear norm."""
    looks = []
    for x in xs:
        groups = [gradients(model, piece) for piece in x.split(len(x) // passes)]
        if norm == "euclidean":
            looks.append(alignment(groups, norm))
            continue
        kinds = ["nuclear" if norm == "nuclear" and g.ndim == 2 else "l1" for g in groups[0]]
        each = [alignment([[g[i]] for g in groups], kind) for i, kind in enumerate(kinds)]
        looks.append(type(each[0])(*(sum(s * v for s, v in zip(steps, values, strict=True)) for values in zip(*each, strict=True))))
    n = len(xs[0]) // passes
    return dual_noise(*looks, small_batch=n, large_batch=(passes - 1) * n)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_equals_the_gradients_of_groups_taken_one_by_one(norm, scale):
    model, xs = net(), [data(16, 1), data(16, 2)]
    monitor = DualNormMonitor(model, norm=norm, every_updates=1, parts=layers_of(model))
    for x in xs:
        run(model, monitor, x, 4, loss_scale=scale)
    first, second = monitor.flush()
    assert first.signal != first.signal  # nothing to pair it with
    shapes = [p.shape for p in model.parameters()]
    steps = [0.2 * max(s) ** 0.5 if len(s) == 2 and norm == "nuclear" else 1.0 for s in shapes]
    steps = [s / max(steps) for s in steps]
    expected = by_hand(model, xs, 4, norm, steps)
    assert tuple(second.parts["all"]) == pytest.approx(tuple(expected), rel=1e-9)
    if norm != "euclidean":
        assert second.parts["all"] != second.parts["0"]
    assert monitor.flush() == []


def test_lengths_of_steps_are_those_of_the_optimizer():
    """Muon's matrices by their rate and shape, the rest by AdamW's rate; the head is not orthogonalised."""
    model, xs = net(), [data(16, 1), data(16, 2)]
    optimizer = Muon(muon_groups(model, lr=0.05, adam_lr=0.02))
    monitor = DualNormMonitor(model, norm="nuclear", optimizer=optimizer, every_updates=1)
    for x in xs:
        run(model, monitor, x, 4)
    rates = [0.05 * 0.2 * 6**0.5, 0.02, 0.05 * 0.2 * 5**0.5, 0.02, 0.02, 0.02]
    looks = []
    for x in xs:
        groups = [gradients(model, piece) for piece in x.split(4)]
        each = [alignment([[g[i]] for g in groups], "nuclear" if i in (0, 2) else "l1") for i in range(6)]
        looks.append(type(each[0])(*(sum(r / max(rates) * v for r, v in zip(rates, vs, strict=True)) for vs in zip(*each, strict=True))))
    expected = dual_noise(*looks, small_batch=4, large_batch=12)
    assert tuple(monitor.flush()[1].parts["all"]) == pytest.approx(tuple(expected), rel=1e-9)


def test_many_passes_are_put_together_to_groups():
    """9 passes of 2 samples, 4 groups of 2 passes; the ninth counts to the other samples of each group."""
    model, xs = net(), [data(18, s) for s in range(3)]
    monitor = DualNormMonitor(model, norm="l1", every_updates=1)
    for x in xs:
        run(model, monitor, x, 9)
    looks = []
    for x in xs[1:]:
        own, small, large = [gradients(model, piece) for piece in x[:16].split(4)], 0.0, 0.0
        whole = gradients(model, x)
        for g in own:
            for mine, all_of_it in zip(g, whole, strict=True):
                others = (18 * all_of_it - 4 * mine) / 14
                small += float((others * mine.sign()).sum()) / 4
                large += float((mine * others.sign()).sum()) / 4
        looks.append((small, large))
    (a, b), (c, d) = looks
    assert tuple(monitor.flush()[2].parts["all"]) == pytest.approx((a * c / 4 - b * d / 14, b * d - a * c), rel=1e-9)


@pytest.mark.bit_for_bit
def test_nothing_else_changes():
    model = net()
    plain = copy.deepcopy(model)
    monitor = DualNormMonitor(model, norm="nuclear", every_updates=1)
    x = data(12, 3)
    for piece in x.split(4):
        for m in (model, plain):
            (loss_of(m, piece) / 12).backward()
        monitor.micro_batch(4, divisor=12)
    monitor.update()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True))


def test_hooks_are_there_in_a_look_alone():
    model, seen = net(), []
    monitor = DualNormMonitor(model, norm="l1", every_updates=3)
    for seed in range(7):
        seen.append(all(p._backward_hooks for p in model.parameters()))
        run(model, monitor, data(12, seed), 3)
    assert seen == [False, False, True, False, False, True, False]
    assert [m.signal == m.signal for m in monitor.flush()] == [False] * 5 + [True, False]
    assert monitor.estimate().num_updates == 1
    assert not any(p._backward_hooks for p in model.parameters())
    NoiseScaleMonitor(model)


@pytest.mark.bit_for_bit
@pytest.mark.parametrize("norm", NORMS)
def test_resumes_to_the_same_bits(norm):
    models = [net(), net()]
    whole, first = (DualNormMonitor(model, norm=norm, every_updates=2, parts=layers_of(model)) for model in models)
    for seed in range(5):
        for model, monitor in zip(models, (whole, first), strict=True):
            run(model, monitor, data(16, seed), 8)
    second = DualNormMonitor(models[1], norm=norm, every_updates=2, parts=layers_of(models[1]))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    first.close()
    for seed in range(5, 12):
        for model, monitor in zip(models, (whole, second), strict=True):
            run(model, monitor, data(16, seed), 8)
    for part in ("all", "2"):
        assert repr(second.estimate(part)) == repr(whole.estimate(part))  # NaN where there is no signal above the noise
    with pytest.raises(UserError, match="was measured before"):
        DualNormMonitor(models[0], norm="l1" if norm != "l1" else "nuclear").load_state_dict(first.state_dict())


def test_looks_of_another_batch_are_not_paired():
    model = net()
    monitor = DualNormMonitor(model, norm="l1", every_updates=1)
    for samples in (12, 12, 24, 24):
        run(model, monitor, data(samples, samples), 4)
    assert [m.signal == m.signal for m in monitor.flush()] == [False, True, False, True]
    assert monitor.estimate().num_updates == 2


def test_groups_of_unequal_samples_tell_nothing():
    model = net()
    monitor = DualNormMonitor(model, norm="l1", every_updates=1)
    for _ in range(3):
        run(model, monitor, data(16, 1), 4, sizes=[4, 4, 4, 4])
    run(model, monitor, data(16, 1), 4, sizes=[1, 4, 5, 6])
    assert monitor.estimate().num_skipped == 1


def test_bad_input():
    model = net()
    with pytest.raises(UserError, match="norm 'l2'"):
        DualNormMonitor(model, norm="l2")
    with pytest.raises(UserError, match="every_updates = 0"):
        DualNormMonitor(model, norm="l1", every_updates=0)
    with pytest.raises(UserError, match="a model without matrices that are orthogonalised"):
        DualNormMonitor(nn.LayerNorm(4), norm="nuclear")
    with pytest.raises(UserError, match="parameter 2.weight: is not in the optimizer"):
        DualNormMonitor(model, norm="l1", optimizer=torch.optim.Adam(model[0].parameters()))
    with pytest.raises(UserError, match="no trainable parameters"):
        DualNormMonitor(net().requires_grad_(False), norm="l1")
    monitor = DualNormMonitor(model, norm="l1", every_updates=1)
    with pytest.raises(UserError, match="0 updates, a look every 1"):
        monitor.estimate()
    for _ in range(2):
        with pytest.warns(UserWarning, match="a look with 2 groups"):
            run(model, monitor, data(8, 0), 2)
    with pytest.raises(UserError, match="2 groups of samples"):
        monitor.estimate()
    with pytest.raises(UserError, match="part '7': is not measured"):
        monitor.estimate("7")


def test_gradients_that_were_changed_are_noticed():
    model = net()
    monitor = DualNormMonitor(model, norm="l1", every_updates=1)
    (loss_of(model, data(4, 0)) / 4).backward()
    monitor.micro_batch(4, divisor=4)
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    with pytest.raises(UserError, match="was changed between micro_batch"):
        monitor.update()


def test_passes_that_are_forgotten_leave_no_trace():
    model, monitors = net(), []
    for forgets in (False, True):
        monitor = DualNormMonitor(model, norm="l1", every_updates=1)
        for seed in range(3):
            if forgets:
                loss_of(model, data(4, 9)).backward()
                monitor.micro_batch(4, divisor=1)
                monitor.forget()
                model.zero_grad()
            run(model, monitor, data(12, seed), 4)
        monitors.append(monitor)
    assert repr(monitors[0].flush()) == repr(monitors[1].flush())
