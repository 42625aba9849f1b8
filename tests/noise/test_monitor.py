import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bigbatch.core.checks import UserError
from bigbatch.noise.monitor import NoiseScaleMonitor, layers_of
from bigbatch.noise.simple_noise_scale import Groups, noise_of_groups


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def sum_loss(model, x):
    return (model(x).squeeze(1) - x.sum(dim=1)).square().sum()


def mean_gradient(model, x, parameters=None):
    return torch.cat([g.flatten() for g in torch.autograd.grad(sum_loss(model, x) / len(x), parameters or list(model.parameters()))])


def run(model, monitor, pieces, divisor=None, loss_scale=1.0):
    for x in pieces:
        d = divisor or sum(len(p) for p in pieces)
        (sum_loss(model, x) / d * loss_scale).backward()
        monitor.micro_batch(len(x), divisor=d)
    monitor.update(loss_scale=loss_scale)
    model.zero_grad()


def by_hand(model, pieces, population=float("inf"), parameters=None):
    """The formula with every group's gradient written out."""
    n, gradients = [len(x) for x in pieces], [mean_gradient(model, x, parameters) for x in pieces]
    total, mean = sum(n), sum(k * g for k, g in zip(n, gradients, strict=True)) / sum(n)
    noise = (sum(k * g @ g for k, g in zip(n, gradients, strict=True)) - total * mean @ mean) / (len(n) - 1)
    return float(mean @ mean - (1 / total - 1 / population) * noise), float(noise)


@pytest.mark.parametrize("accumulate", [False, True])
@settings(deadline=None, max_examples=25)
@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=6), seed=st.integers(0, 99), scale=st.sampled_from([1.0, 1024.0]))
def test_equals_the_formula_with_groups_of_any_sizes(sizes, seed, scale, accumulate):
    model = net(seed)
    monitor = NoiseScaleMonitor(model, parts=layers_of(model), population=500, accumulate=accumulate)
    pieces = list(torch.randn(sum(sizes), 6, dtype=torch.float64).split(sizes))
    run(model, monitor, pieces, loss_scale=scale)
    (measured,) = monitor.flush()
    assert tuple(measured.parts["all"]) == pytest.approx(by_hand(model, pieces, 500), rel=1e-9)
    assert tuple(measured.parts["2"]) == pytest.approx(by_hand(model, pieces, 500, list(model[2].parameters())), rel=1e-9)
    assert measured.noise == pytest.approx(measured.parts["0"].noise + measured.parts["2"].noise, rel=1e-9)
    assert monitor.flush() == []


def test_weights_that_are_not_those_of_the_samples():
    """A loop that averages means of unequal micro-batches: the gradient is not the mean over samples, and the estimate knows."""
    torch.manual_seed(1)
    d, signal, noise = 400, 4.0, 400.0
    true = torch.full((d,), (signal / d) ** 0.5, dtype=torch.float64)
    sizes, seen = [1, 3, 8], []
    for _ in range(2000):
        means = [true + torch.randn(d, dtype=torch.float64) / n**0.5 for n in sizes]
        whole = sum(means) / 3
        groups = Groups(sum(n * float(g @ g) for n, g in zip(sizes, means, strict=True)), 12, 3, 1.0, sum(1 / 9 / n for n in sizes))
        seen.append(noise_of_groups(groups, sq_norm=float(whole @ whole)))
    for values, truth in zip(zip(*seen, strict=True), (signal, noise), strict=True):
        values = torch.tensor(values)
        assert abs(values.mean() - truth) < 4 * values.std() / len(values) ** 0.5


@pytest.mark.bit_for_bit
def test_nothing_else_changes():
    model = net()
    plain = copy.deepcopy(model)
    monitor = NoiseScaleMonitor(model, along=True)
    x = torch.randn(8, 6, dtype=torch.float64)
    for piece in x.split(2):
        (sum_loss(model, piece) / 8).backward()
        monitor.micro_batch(2, divisor=8)
        (sum_loss(plain, piece) / 8).backward()
    monitor.update()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    monitor.close()
    assert all(not p._backward_hooks for p in model.parameters())


def test_the_variance_along_the_last_gradient():
    model = net()
    monitor = NoiseScaleMonitor(model, along=True)
    updates = [list(torch.randn(12, 6, dtype=torch.float64).split([2, 4, 6])) for _ in range(3)]
    for pieces in updates:
        run(model, monitor, pieces)
    first, *others = monitor.flush()
    assert first.noise_along != first.noise_along, "there was no gradient before the first"
    for before, pieces, measured in zip(updates, updates[1:], others, strict=False):
        direction = mean_gradient(model, torch.cat(before))
        dots = [(len(x), float(mean_gradient(model, x) @ direction / direction.norm())) for x in pieces]
        mean = sum(n * dot for n, dot in dots) / 12
        assert measured.noise_along == pytest.approx((sum(n * dot**2 for n, dot in dots) - 12 * mean**2) / 2, rel=1e-9)
        assert tuple(measured.parts["all"]) == pytest.approx(by_hand(model, pieces), rel=1e-9)


def test_zero_gradients_equal_gradients_and_the_words_for_them():
    w = nn.Linear(1, 1, bias=False)
    monitor = NoiseScaleMonitor(w)
    for factor, words in ((0.0, "no noise scale: every gradient is zero"), (1.0, "0: the gradients of all samples are equal")):
        monitor = NoiseScaleMonitor(w)
        for _ in range(5):
            for _ in range(2):
                (factor * w(torch.ones(3, 1)).sum() / 6).backward()
                monitor.micro_batch(3, divisor=6)
            monitor.update()
            w.zero_grad()
        assert monitor.estimate().in_words() == words


def test_an_update_that_is_not_finite_is_left_out_and_counted():
    model = net()
    monitor = NoiseScaleMonitor(model)
    for step in range(6):
        pieces = list(torch.randn(8, 6, dtype=torch.float64).split(2))
        if step == 3:
            pieces[1] = pieces[1] * float("nan")
        run(model, monitor, pieces)
    estimate = monitor.estimate()
    assert (estimate.num_updates, estimate.num_skipped) == (5, 1)
    assert estimate.noise > 0
    assert "5 updates, 1 skipped" in str(estimate)


def test_one_micro_batch_only():
    model = net()
    monitor = NoiseScaleMonitor(model)
    run(model, monitor, [torch.randn(8, 6, dtype=torch.float64)])
    with pytest.raises(UserError, match="1 updates, none of which tells signal from noise: each must have at least two micro-batches"):
        monitor.estimate()


def test_bad_arguments():
    frozen = nn.Linear(2, 2)
    frozen.requires_grad_(False)
    with pytest.raises(UserError, match="no trainable parameters"):
        NoiseScaleMonitor(frozen)
    with pytest.raises(UserError, match=r"population = 0: must be larger than one"):
        NoiseScaleMonitor(net(), population=0)
    monitor = NoiseScaleMonitor(net(), parts={"first": []})
    with pytest.raises(UserError, match="part 'second': is not measured; known: all, first"):
        monitor.estimate("second")


def test_two_gradients_of_one_pass():
    """Two backward passes for the same samples: their norms don't add, so it must be said and not guessed."""
    model = net()
    monitor = NoiseScaleMonitor(model)
    x = torch.randn(4, 6, dtype=torch.float64)
    for _ in range(2):
        sum_loss(model, x).backward()
    with pytest.raises(UserError, match="two gradients of one parameter since the last micro_batch"):
        monitor.micro_batch(4, divisor=4)


def test_parts_of_gradients_in_buckets():
    monitor = NoiseScaleMonitor(net(), own=True, process_group=None, parts={"first": []})
    with pytest.raises(UserError, match="parts, and gradients in buckets: only the whole model"):
        monitor.observe(torch.ones(3), torch.ones(3))


class Branches(nn.Module):
    """Of its two layers a pass uses one, or both: some gradients are missing in some passes."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 1), nn.Linear(6, 1), nn.Linear(6, 1)]).double()
        self.used = 0

    def forward(self, x):
        return sum(self.layers[i](x) for i in self.used)


@pytest.mark.parametrize("along", [False, True])
def test_adding_up_passes_itself_changes_neither_gradients_nor_measurements(along):
    """Against autograd's own sum and a hook on each parameter, also where a pass does not reach every parameter."""
    torch.manual_seed(0)
    models = [Branches(), Branches()]
    models[1].load_state_dict(models[0].state_dict())
    monitors = [NoiseScaleMonitor(model, along=along, accumulate=a) for model, a in zip(models, (False, True), strict=True)]
    for _ in range(3):
        pieces = [(torch.randn(n, 6, dtype=torch.float64), used) for n, used in ((3, (0,)), (4, (0, 1)), (2, (1,)))]
        for model, monitor in zip(models, monitors, strict=True):
            for x, model.used in pieces:
                (sum_loss(model, x) / 9).backward()
                monitor.micro_batch(len(x), divisor=9)
            monitor.update()
        for p, q in zip(*(model.parameters() for model in models), strict=True):
            assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad)
        for model in models:
            model.zero_grad()
    for hooked, added in zip(*(monitor.flush() for monitor in monitors), strict=True):
        assert (*added.parts["all"], added.noise_along) == pytest.approx((*hooked.parts["all"], hooked.noise_along), nan_ok=True)


def test_a_monitor_that_adds_up_passes_holds_the_gradient_until_the_update():
    model = net()
    monitor, x = NoiseScaleMonitor(model, accumulate=True), torch.randn(8, 6, dtype=torch.float64)
    sum_loss(model, x).backward()
    monitor.micro_batch(8, divisor=1)
    assert all(p.grad is None for p in model.parameters())
    monitor.forget()
    sum_loss(model, x).backward()
    with pytest.raises(UserError, match=r"gradient of '0.weight' since the last pass .* call micro_batch\(\)"):
        monitor.update()
    monitor.micro_batch(8, divisor=1)
    monitor.update()
    wanted = mean_gradient(model, x)
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in model.parameters()]), 8 * wanted)


def test_forgotten_passes_count_nothing():
    model = net()
    monitor = NoiseScaleMonitor(model)
    pieces = list(torch.randn(8, 6, dtype=torch.float64).split(2))
    (sum_loss(model, 1e6 * pieces[0])).backward()
    monitor.micro_batch(2, divisor=1)
    monitor.forget()
    model.zero_grad()
    run(model, monitor, pieces)
    assert tuple(monitor.flush()[0].parts["all"]) == pytest.approx(by_hand(model, pieces), rel=1e-9)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("layers", [False, True])
def test_sparse_gradients_are_measured_as_dense_ones(accumulate, layers):
    found = []
    for sparse in (False, True):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Embedding(7, 4, sparse=sparse), nn.Flatten(), nn.Linear(12, 1)).double()
        monitor = NoiseScaleMonitor(model, accumulate=accumulate, parts=layers_of(model) if layers else None)
        for update in range(3):
            for number in range(3):
                ids = torch.randint(7, (5, 3), generator=torch.Generator().manual_seed(10 * update + number))
                (model(ids).square().sum() / 15).backward()
                monitor.micro_batch(5, divisor=15)
            monitor.update()
            model.zero_grad()
        found.append(monitor.state_dict()["measured"])
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-15, equal_nan=True)


def test_parameters_of_unlike_precision_are_measured_in_the_widest():
    torch.manual_seed(3)

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow, self.wide = nn.Linear(6, 5), nn.Linear(5, 1).double()

        def forward(self, x):
            return self.wide(self.narrow(x.float()).tanh().double())

    model = Mixed()
    pieces = [torch.randn(4, 6) for _ in range(3)]
    expected, monitor = by_hand_of(model, pieces), NoiseScaleMonitor(model)
    run(model, monitor, pieces)
    told = monitor.flush()[0].parts["all"]
    assert (told.signal, told.noise) == pytest.approx(expected, rel=1e-5)


def by_hand_of(model, pieces):
    gradients = []
    for x in pieces:
        found = torch.autograd.grad(sum_loss(model, x) / len(x), list(model.parameters()))
        gradients.append(torch.cat([g.flatten().double() for g in found]))
    n = [len(x) for x in pieces]
    total, mean = sum(n), sum(k * g for k, g in zip(n, gradients, strict=True)) / sum(n)
    noise = (sum(k * g @ g for k, g in zip(n, gradients, strict=True)) - total * mean @ mean) / (len(n) - 1)
    return float(mean @ mean - noise / total), float(noise)
