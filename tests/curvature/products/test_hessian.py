"""Equal to the dense matrix, entry by entry, whatever the batches, the loss's reduction and the layers."""

import pytest
import torch
import torch.nn.functional as F
from tests.curvature.conftest import flat_of, per_sample, set_flat, unequal
from torch import nn

from bigbatch.curvature.products.gauss_newton import GaussNewton
from bigbatch.curvature.products.hessian import Hessian, hessian_times
from bigbatch.curvature.products.hvp import hvp

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def rows(k, n, dtype=torch.float64):
    return torch.randn(k, n, generator=torch.Generator().manual_seed(1), dtype=dtype)


def test_hand_worked():  # L = mean of (w x)^2 / 2 over x = 1, 2, 3: H = 14 / 3
    model, x = nn.Linear(1, 1, bias=False).double(), torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    operator = Hessian(model, lambda z, _: z[:, 0] ** 2 / 2, unequal(x, x, [2, 1]))
    assert operator(torch.tensor([3.0], dtype=torch.float64)).item() == pytest.approx(14)
    assert operator.samples == 3


@pytest.mark.parametrize("micro_batch", [None, 1, 4, 100])
@pytest.mark.parametrize("loss", [per_sample, F.cross_entropy])
def test_equals_the_dense_matrix(case, micro_batch, loss):
    operator = Hessian(case.model, loss, case.batches, micro_batch=micro_batch)
    v = rows(3, 1229)
    torch.testing.assert_close(operator(v), v @ case.hessian, **EXACT)
    torch.testing.assert_close(operator(v[0]), case.hessian @ v[0], **EXACT)  # by graphs that were kept
    torch.testing.assert_close(hvp(case.model, loss, case.batches, v, micro_batch=micro_batch), v @ case.hessian, **EXACT)
    assert operator.samples == 60


def test_the_whole_matrix_is_symmetric(case):
    whole = Hessian(case.model, case.loss, case.batches)(torch.eye(1229, dtype=torch.float64))
    torch.testing.assert_close(whole, case.hessian, **EXACT)
    assert (whole - whole.T).abs().max() < 1e-14


def test_graphs_that_do_not_fit_are_made_anew(case):
    v = rows(2, 1229)
    for memory_bytes in (0, 10_000):
        operator = Hessian(case.model, case.loss, case.batches, memory_bytes=memory_bytes)
        for _ in range(2):
            torch.testing.assert_close(operator(v), v @ case.hessian, **EXACT)
        assert operator._kept is None
    assert Hessian(case.model, case.loss, case.batches, memory_bytes=2**20)(v) is not None


def test_loss_and_gradient(case):
    z = case.model(case.x)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(z, case.y), list(case.model.parameters()))])
    for operator in (Hessian(case.model, case.loss, case.batches, micro_batch=4), GaussNewton(case.model, F.cross_entropy, case.batches)):
        assert operator.loss() == pytest.approx(F.cross_entropy(z, case.y).item(), rel=1e-14)
        torch.testing.assert_close(operator.gradient(), gradient, **EXACT)


def test_some_of_the_parameters(case):
    names = [name for name, _ in case.model.named_parameters()]
    sizes = [p.numel() for p in case.model.parameters()]
    chosen = torch.cat([torch.full((n,), name in ("0.bias", "4.weight")) for name, n in zip(names, sizes, strict=True)])
    operator = Hessian(case.model, case.loss, case.batches, parameters=[case.model[4].weight, case.model[0].bias])
    v = rows(2, 18 + 290)
    torch.testing.assert_close(operator(v), v @ case.hessian[chosen][:, chosen], **EXACT)
    whole = operator(torch.eye(308, dtype=torch.float64))  # in the model's order, whatever the list's
    torch.testing.assert_close(whole, case.hessian[chosen][:, chosen], **EXACT)


def test_frozen_parameters_are_left_out_unless_named(case):
    case.model[0].weight.requires_grad_(False)
    try:
        operator = Hessian(case.model, case.loss, case.batches)
        assert operator.size == 1229 - 360
        v = rows(1, 869)[0]
        torch.testing.assert_close(operator(v), case.hessian[360:, 360:] @ v, **EXACT)
        named = Hessian(case.model, case.loss, case.batches, parameters=case.model.parameters())
        v = rows(1, 1229)[0]
        torch.testing.assert_close(named(v), case.hessian @ v, **EXACT)
        assert not case.model[0].weight.requires_grad
    finally:
        case.model[0].weight.requires_grad_()


def test_float32(case):
    model = nn.Sequential(*[nn.Linear(m.in_features, m.out_features) if isinstance(m, nn.Linear) else nn.Tanh() for m in case.model])
    model.load_state_dict({name: t.float() for name, t in case.model.state_dict().items()})
    operator = Hessian(model, case.loss, [(x.float(), y) for x, y in case.batches], micro_batch=1)
    v = rows(2, 1229)
    got = operator(v.float())
    assert (operator.dtype, got.dtype) == (torch.float32, torch.float32)
    assert (got.double() - v @ case.hessian).norm() < 1e-6 * (v @ case.hessian).norm()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.3, batch_first=True, activation="gelu")
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        q = x[:, None]
        return self.head(self.layer(x)[:, -1] + F.scaled_dot_product_attention(q, q, q)[:, 0, 0])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def convolutional():
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Softplus(), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    net[1].running_mean.uniform_(-1, 1)
    net[1].running_var.uniform_(0.5, 2)
    return net.to(memory_format=torch.channels_last)


KINDS = {
    "lstm": (Recurrent, (5, 3)),
    "attention": (Attentive, (5, 4)),
    "convolution and batch norm": (convolutional, (2, 4, 4)),
    "tied and unused weights": (Tied, (3,)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_layers_by_differences_of_gradients(kind):
    """(grad L(w + h v) - grad L(w - h v)) / 2h, with the model in evaluation mode."""
    make, shape = KINDS[kind]
    torch.manual_seed(2)
    model = make().double()
    x, y = torch.randn(7, *shape, dtype=torch.float64), torch.randint(3, (7,))
    operator = Hessian(model, per_sample, unequal(x, y, [3, 4]), micro_batch=2)
    v, h, weights = rows(1, operator.size)[0], 1e-5, flat_of(model)
    got = operator(v)
    slopes = []
    for sign in (1, -1):
        set_flat(model, weights + sign * h * v)
        slopes.append(operator.gradient())
        grads = torch.autograd.grad(per_sample(model.eval()(x), y).mean(), list(model.parameters()), allow_unused=True)
        own = torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for g, p in zip(grads, model.parameters(), strict=True)])
        torch.testing.assert_close(slopes[-1], own, **EXACT)
    expected = (slopes[0] - slopes[1]) / (2 * h)
    assert (got - expected).norm() < 1e-7 * expected.norm()
    set_flat(model, weights)
    both = GaussNewton(model, per_sample, unequal(x, y, [3, 4]))
    assert (both(v) @ v).item() > 0
    gap = operator(rows(1, operator.size)[0]) - Hessian(model, per_sample, [(x, y)])(v)
    assert gap.norm() < 1e-12 * got.norm()


def test_training_mode_is_of_micro_batches():
    """Batch norm normalises each by its own statistics; dropout draws the same at every pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.randint(3, (8,))
    v = rows(1, 39)[0]
    state = {name: t.clone() for name, t in model.state_dict().items()}
    cut = Hessian(model, per_sample, [(x, y)], micro_batch=4, training=True, memory_bytes=0)
    torch.testing.assert_close(cut(v), cut(v), rtol=0, atol=0)
    torch.testing.assert_close(cut(v), Hessian(model, per_sample, unequal(x, y, [4, 4]), training=True)(v))
    whole = Hessian(model, per_sample, [(x, y)], training=True)(v)
    assert (whole - cut(v)).norm() > 1e-2 * whole.norm()
    assert (whole - Hessian(model, per_sample, [(x, y)])(v)).norm() > 1e-2 * whole.norm()
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_weights_that_change_between_products(case):
    model = nn.Linear(2, 1, bias=False).double()
    x = torch.eye(2, dtype=torch.float64)
    operator = Hessian(model, lambda z, _: z[:, 0] ** 3, [(x, x)])  # H = diag(3 w)
    ones = torch.ones(2, dtype=torch.float64)
    for w in (1.0, 2.0):
        model.weight.data.fill_(w)  # which no version counter sees
        assert operator(ones).tolist() == pytest.approx([3 * w, 3 * w])


def test_a_loss_without_curvature():
    model, x = nn.Linear(3, 1), torch.randn(4, 3)
    for loss in (lambda z, _: z[:, 0], lambda z, _: F.relu(z[:, 0])):
        assert not Hessian(model, loss, [(x, x)])(torch.ones(4)).any()
        assert not GaussNewton(model, loss, [(x, x)])(torch.ones(4)).any()


def test_inputs_in_tuples_and_dicts():
    class Sum(nn.Linear):
        def forward(self, a, b):
            return super().forward(a + b)

    model, a, b = Sum(2, 1), torch.randn(6, 2), torch.randn(6, 2)
    v = torch.ones(3)
    loss = lambda z, y: (z[:, 0] - y["y"]) ** 4  # noqa: E731
    one = Hessian(model, loss, [((a, b), {"y": torch.zeros(6)})], micro_batch=4)(v)
    torch.testing.assert_close(one, Hessian(model, loss, [[{"b": b, "a": a}, {"y": torch.zeros(6)}]])(v))
    plain = Hessian(nn.Linear(2, 1), loss, [(a, {"y": torch.zeros(6)})])
    plain.model.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(v), Hessian(model, loss, [((a, torch.zeros_like(a)), {"y": torch.zeros(6)})])(v))


def test_no_leaf_gets_a_gradient_and_no_loss_no_map():
    w = torch.ones(2, requires_grad=True)
    assert hessian_times(torch.tensor(1.0), [w]) is None
    assert hessian_times((torch.ones(1, requires_grad=True) ** 2).sum(), [w]) is None
    assert w.grad is None


def test_the_gradient_keeps_graphs_for_products():
    """One pass over the data serves both, in either order; and weights that change need another."""
    model, calls = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double(), []
    x, y = torch.randn(10, 3, dtype=torch.float64), torch.zeros(10, dtype=torch.float64)

    def loss(z, y):
        calls.append(len(y))
        return (z[:, 0] - y - 1) ** 4

    def gradient():
        value = loss(model(x), y).mean()
        calls.clear()
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])

    first = Hessian(model, loss, [(x, y)], micro_batch=4)
    v = torch.ones(first.size, dtype=torch.float64)
    second = Hessian(model, loss, [(x, y)], micro_batch=4)
    for operator in (first, second):
        operator(v)  # the first product is compared with differences of gradients on few samples
    with torch.no_grad():
        model[0].weight.add_(0.1)
    for _ in range(2):
        expected = gradient()
        torch.testing.assert_close(first.gradient(), expected, rtol=1e-12, atol=1e-12)
        product = first(v)
        torch.testing.assert_close(first.gradient(), expected, rtol=1e-12, atol=1e-12)
        assert calls == [4, 4, 2]
        torch.testing.assert_close(second(v), product, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(second.loss_and_gradient()[1], expected, rtol=1e-12, atol=1e-12)
        assert calls == [4, 4, 2] * 2
        with torch.no_grad():
            model[0].weight.add_(0.1)
