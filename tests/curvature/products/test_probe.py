"""Products against differences of gradients: what second derivatives alone can't see."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from bigbatch.core.checks import UserError
from bigbatch.curvature import GaussNewton, Hessian, hvp, keskar_sharpness, sam_sharpness, top_eigenvalues
from bigbatch.curvature.products.probe import Evaluator, gauss_newton_by_difference, hessian_by_difference


def by_difference(model, loss, x, y, v, h=1e-5):
    """H v from two gradients of the model as it is, without anything of the package."""
    names, base = zip(*((name, p.detach()) for name, p in model.named_parameters()), strict=True)

    def gradient(t):
        steps = torch.split(v, [p.numel() for p in base])
        moved = [(p + t * step.view_as(p)).requires_grad_() for p, step in zip(base, steps, strict=True)]
        value = loss(functional_call(model, dict(zip(names, moved, strict=True)), (x,)), y)
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, moved)])

    return (gradient(h) - gradient(-h)) / (2 * h)


def weight_normed(form, dim):
    torch.manual_seed(0)
    return nn.Sequential(form(nn.Linear(5, 7), dim=dim), nn.Tanh(), form(nn.Linear(7, 3), dim=dim)).double()


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("form", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm], ids=["hook", "parametrization"])
def test_weight_normed_models(form, dim):
    """torch's own second derivative is wrong: products were off by 30 to 80 % here."""
    model = weight_normed(form, dim)
    x, y = torch.randn(11, 5, dtype=torch.float64), torch.randint(3, (11,))
    hessian = Hessian(model, F.cross_entropy, [(x, y)])
    v = torch.randn(hessian.size, dtype=torch.float64)
    torch.testing.assert_close(hessian(v), by_difference(model, F.cross_entropy, x, y, v), rtol=1e-6, atol=1e-7)
    assert keskar_sharpness(model, F.cross_entropy, [(x, y)], iterations=2, starts=1).value >= 0  # copies the model
    GaussNewton(model, F.cross_entropy, [(x, y)])(v)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weight_normed_convolutions():
    torch.manual_seed(1)
    form = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(form(nn.Conv1d(2, 4, 3)), nn.Softplus(), form(nn.ConvTranspose1d(4, 2, 3), dim=1), nn.Flatten()).double()
    x, y = torch.randn(6, 2, 8, dtype=torch.float64), torch.randn(6, 16, dtype=torch.float64)
    hessian = Hessian(model, F.mse_loss, [(x, y)])
    v = torch.randn(hessian.size, dtype=torch.float64)
    torch.testing.assert_close(hessian(v), by_difference(model, F.mse_loss, x, y, v), rtol=1e-6, atol=1e-7)


class _Detached(torch.autograd.Function):
    """x^3 whose gradient's graph is lost on the way, as a hand-written backward pass loses it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 3 * x.detach() ** 2


class Wrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.second(_Detached.apply(self.first(x)))


def test_a_wrong_second_derivative_is_refused_with_its_place():
    torch.manual_seed(0)
    data = [(torch.randn(20, 4), torch.randint(2, (20,)))]
    for measure in (
        lambda: Hessian(Wrong(), F.cross_entropy, data)(torch.ones(44)),
        lambda: hvp(Wrong(), F.cross_entropy, data, torch.ones(44)),
        lambda: top_eigenvalues(Hessian(Wrong(), F.cross_entropy, data), 1),
    ):
        with pytest.raises(
            UserError, match=r"differs by .* % from differences of gradients, most at parameter 'first\.\w+' \(of first, a Linear"
        ):
            measure()


class _OneSided(torch.autograd.Function):
    """x w, of whose gradients only one has a graph."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad * w, (grad.detach() * x.detach()).sum(0)


def test_without_float64_symmetry_is_looked_at():
    class OnlyFloat32(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.w = nn.Linear(4, 2), nn.Parameter(torch.ones(2))

        def forward(self, x):
            if x.dtype != torch.float32:
                raise TypeError("float32 only")
            return _OneSided.apply(self.first(x), self.w)

    with pytest.raises(UserError, match="u'Av and v'Au differ"):
        Hessian(OnlyFloat32(), F.cross_entropy, [(torch.randn(20, 4), torch.randint(2, (20,)))])(torch.ones(12))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_kinks_raise_no_alarm(seed, dtype):
    """ReLU, max-pooling, batch norm, dropout in training mode, embeddings, attention, recurrence."""
    torch.manual_seed(seed)
    image = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(72, 3)
    )
    x, y = torch.randn(30, 1, 8, 8, dtype=dtype), torch.randint(3, (30,))
    for training in (False, True):
        hessian = Hessian(image.to(dtype), F.cross_entropy, [(x, y)], training=training)
        assert bool(hessian(torch.randn(hessian.size, dtype=dtype)).isfinite().all())

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.attend, self.recur, self.out = (
                nn.Embedding(9, 8),
                nn.MultiheadAttention(8, 2, batch_first=True),
                nn.GRU(8, 6, batch_first=True),
                nn.Linear(6, 3),
            )

        def forward(self, words):
            z = self.embed(words)
            return self.out(self.recur(z + self.attend(z, z, z)[0])[0][:, -1])

    words = Words().to(dtype)
    hessian = Hessian(words, F.cross_entropy, [(torch.randint(9, (30, 5)), y)])
    assert bool(hessian(torch.randn(hessian.size, dtype=dtype)).isfinite().all())


def test_a_net_that_diverged_raises_no_alarm():
    """All units are off, with weights so large that a step of 1e-7 of them turns half of them on: no derivative describes that."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight.fill_(1e8)
        model[0].bias.fill_(-1e-3)
        model[2].bias.zero_()
        model[2].weight.copy_(1e8 * torch.randn(2, 6, generator=torch.Generator().manual_seed(0)))
    x = torch.tensor([1.0, -1.0, 1.0, -1.0]).expand(20, 4)
    hessian = Hessian(model, F.cross_entropy, [(x, torch.arange(20) % 2)])
    product = hessian(torch.arange(float(hessian.size)))
    assert product[:-2].count_nonzero() == 0
    assert product[-2:].tolist() == pytest.approx([-0.25, 0.25])  # of the last bias: p (1 - p), at equal odds


def test_the_references_by_hand():
    """l = (w^2 x - y)^2 with w = 2, x = 1, y = 1: H = 2 (2 w x)^2 + 2 (w^2 x - y) 2 x = 44, G = 2 (2 w x)^2 = 32."""

    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, x):
            return self.w**2 * x

    model, x, y = Square(), torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)

    def squared(z, y):
        return (z - y) ** 2

    piece = next(iter(Hessian(model, squared, [(x, y)])._batches))
    at = Evaluator(model, squared, piece, dict(model.named_parameters()), ["w"])
    v = [torch.ones((), dtype=torch.float64)]
    assert float(hessian_by_difference(at, v, 1e-5)[0]) == pytest.approx(44, rel=1e-6)
    assert float(gauss_newton_by_difference(at, v, 1e-5)[0]) == pytest.approx(32, rel=1e-6)


WEIGHTS = torch.tensor([1.0, 5.0, 0.2])


def ignoring(z, y):
    return F.cross_entropy(z, y, ignore_index=0)


def weighted(z, y):
    return F.cross_entropy(z, y, weight=WEIGHTS)


@pytest.mark.parametrize("loss", [ignoring, weighted, nn.CrossEntropyLoss(weight=WEIGHTS)], ids=["ignore_index", "weight", "module"])
def test_a_scalar_that_is_no_plain_mean_is_not_pooled(loss):
    """Micro-batches of 4 against whole differed by 69 and 46 %, in silence."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 3), torch.randn(24, 5), torch.randint(3, (24,))
    v = torch.ones(18)
    whole = Hessian(model, loss, [(x, y)])(v)  # the loss itself: nothing is pooled
    assert bool(whole.isfinite().all())
    halves = [(x[:12], y[:12]), (x[12:], y[12:])]
    for measure in (
        lambda: Hessian(model, loss, [(x, y)], micro_batch=4)(v),
        lambda: Hessian(model, loss, halves)(v),
        lambda: Hessian(model, loss, halves).loss(),
        lambda: GaussNewton(model, loss, halves)(v),
        lambda: keskar_sharpness(model, loss, halves, iterations=1),
        lambda: sam_sharpness(model, loss, [(x, y)], m=8),
    ):
        with pytest.raises(UserError, match="not the plain mean over samples.*reduction='none'"):
            measure()


def test_the_remedy_pools_right():
    """Losses one a sample, times the number of samples over the sum of weights: the whole batch's own loss."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 3).double(), torch.randn(24, 5, dtype=torch.float64), torch.randint(3, (24,))
    total = WEIGHTS[y].sum()

    def each(z, y):
        return F.cross_entropy(z, y, weight=WEIGHTS.double(), reduction="none") * (24 / total)

    v = torch.randn(18, dtype=torch.float64)
    whole = Hessian(model, lambda z, y: F.cross_entropy(z, y, weight=WEIGHTS.double()), [(x, y)])(v)
    torch.testing.assert_close(Hessian(model, each, [(x, y)], micro_batch=4)(v), whole)


def test_plain_means_are_pooled_as_before():
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 3).double(), torch.randn(23, 5, dtype=torch.float64), torch.randint(3, (23,))
    v = torch.randn(18, dtype=torch.float64)
    for loss in (F.cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.1), lambda z, y: F.mse_loss(z, F.one_hot(y, 3).double())):
        torch.testing.assert_close(Hessian(model, loss, [(x, y)], micro_batch=4)(v), Hessian(model, loss, [(x, y)])(v))


class _Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 1)

    def forward(self, x):
        return self.b(checkpoint(lambda y: self.a(y).tanh(), x, use_reentrant=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activation_checkpointing_is_to_be_turned_off(dtype):
    """It computes anew with the module's own weights: torch's error about types told nobody so."""
    torch.manual_seed(0)
    model, x = _Checkpointed().to(dtype), torch.randn(8, 4, dtype=dtype)
    hessian = Hessian(model, lambda outputs, targets: (outputs - targets).square().mean(1), [(x, x[:, :1])])
    with pytest.raises(UserError, match="turn activation checkpointing off"):
        hessian(torch.ones(sum(p.numel() for p in model.parameters()), dtype=dtype))
