"""What no operator changes, and what it refuses."""

import random
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.curvature.conftest import per_sample
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.data import DataLoader, TensorDataset

from bigbatch.core.checks import UserError
from bigbatch.curvature.products.gauss_newton import GaussNewton
from bigbatch.curvature.products.hessian import Hessian
from bigbatch.curvature.products.hvp import hvp

X, Y = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.ReLU(), nn.Linear(4, 2))


class Diary(nn.Module):
    """Notes down what passes, in attributes, a list and a buffer, and draws random numbers in any mode."""

    def __init__(self):
        super().__init__()
        self.net, self.lstm, self.seen = make(), nn.LSTM(2, 2, batch_first=True), []
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        self.last = self.net(x)
        self.seen.append(len(x))
        random.random(), np.random.rand()
        return self.lstm(F.dropout(self.last, training=True)[:, None])[0][:, -1]


def found(model):
    """All that must be as before."""
    return {
        "modes": [m.training for m in model.modules()],
        "held": [sorted(vars(m)) for m in model.modules()],
        "state": {name: t.clone() for name, t in model.state_dict().items()},
        "versions": [t._version for t in model.state_dict().values()],
        "grads": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        "needed": [p.requires_grad for p in model.parameters()],
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].copy(),
        "seen": list(model.seen),
        "lstm": [id(w) for w in model.lstm._flat_weights],
    }


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fails", [None, "in the loss", "in the data", "in the product"])
def test_left_as_found(fails, training):
    model = Diary()
    model.net[1].eval()  # one layer frozen, as some do
    model.net[0].bias.requires_grad_(False)
    model.net[4].weight.grad = torch.ones(2, 4)
    calls = 0

    def loss(z, y):
        nonlocal calls
        calls += 1
        if fails == "in the loss" and calls > 1:
            raise RuntimeError("broken")
        return NotTwice.apply(per_sample(z, y)) if fails == "in the product" else per_sample(z, y)

    class Data:
        def __iter__(self):
            yield X[:5], Y[:5]
            if fails == "in the data":
                raise RuntimeError("broken")
            yield X[5:], Y[5:]

    before = found(model)
    operator = Hessian(model, loss, Data(), training=training)
    v = torch.ones(operator.size)
    try:
        first = operator(v)
        torch.testing.assert_close(operator(v), first, rtol=0, atol=0)
        assert fails is None
        fresh = hvp(model, loss, Data(), v, training=training)  # the same random numbers again
        torch.testing.assert_close(fresh, first, rtol=1e-5, atol=1e-7)
        operator.gradient(), operator.loss(), operator.samples
    except RuntimeError as error:
        assert str(error) == "broken"  # noqa: PT017
        assert fails
    except UserError as error:
        assert "not twice differentiable" in str(error)  # noqa: PT017
        assert fails == "in the product"
    after = found(model)
    assert after.pop("held") == before.pop("held")
    torch.testing.assert_close(after, before, rtol=0, atol=0)


class NotTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


DATA = [(X[:5], Y[:5]), (X[5:], Y[5:])]
BAD_LOSS = {
    "not twice differentiable": (
        lambda z, y: NotTwice.apply(z).sum(1),
        r"loss is not twice differentiable \(NotTwice is marked once",
    ),
    "detached": (lambda z, y: per_sample(z.detach(), y), "loss: has no graph to the chosen parameters"),
    "not finite": (lambda z, y: per_sample(z, y) / 0, "loss of batch 0 is inf: must be finite"),
    "not a number": (lambda z, y: per_sample(z, y) * (float("nan") if len(y) == 7 else 1), "loss of batch 1 is nan"),
    "a float": (lambda z, y: per_sample(z, y).mean().item(), r"loss of batch 0 is a float: must be one a sample, \(5,\), or their mean"),
    "of many": (lambda z, y: z, r"loss of batch 0 is of shape \(5, 2\), torch.float32: must be one a sample"),
    "with a kink of infinite slope": (lambda z, y: (z[:, 0] * 0).abs().sqrt(), "a derivative of the loss is not finite"),
}


@pytest.mark.parametrize("kind", BAD_LOSS)
@pytest.mark.parametrize("operator", [Hessian, GaussNewton])
def test_bad_losses(kind, operator):
    loss, message = BAD_LOSS[kind]
    H = operator(make(), loss, DATA)
    with pytest.raises(UserError, match=message):
        H(torch.ones(H.size))


def loader(**how):
    return DataLoader(TensorDataset(X, Y), batch_size=5, **how)


def augmented():
    class Noisy(TensorDataset):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return x + random.gauss(0, 0.1), y

    return DataLoader(Noisy(X, Y), batch_size=5)


class Growing:
    left = 1

    def __iter__(self):
        self.left += 1
        return iter([*DATA, *DATA][: self.left])


class Shrinking:
    def __init__(self):
        self.left = 3

    def __iter__(self):
        self.left -= 1
        return iter(DATA[: self.left])


BAD_DATA = {
    "shuffled": (lambda: loader(shuffle=True), "batch 0 is not what it was at the first pass; turn off shuffling and augmentation"),
    "shuffled by its own generator": (lambda: loader(shuffle=True, generator=torch.Generator()), "is not what it was"),
    "augmented": (augmented, "is not what it was"),
    "read up": (Shrinking, "batch 1 is not what it was at the first pass"),
    "a generator": (lambda: (batch for batch in DATA), "a generator can be read only once; give a list or a DataLoader"),
    "one more": (lambda: Growing(), "batch 2 is not what it was at the first pass"),
    "empty": (list, "batches: none; give at least one batch"),
    "an empty batch": (lambda: [(X[:0], Y[:0])], r"batch 0: tensors of \[0\] samples"),
    "unlike": (lambda: [(X, Y[:3])], r"batch 0: tensors of \[3, 12\] samples"),
    "one pair": (lambda: (X, Y), r"batch 0 is a Tensor: must be a pair; give a list of pairs"),
    "a number": (lambda: 3, "batches: a int has no batches to read"),
}


@pytest.mark.parametrize("kind", BAD_DATA)
@pytest.mark.parametrize("memory_bytes", [0, 2**30])
def test_bad_data(kind, memory_bytes):
    data, message = BAD_DATA[kind]
    model, batches = make(), data()

    def two_products():
        operator = Hessian(model, per_sample, batches, memory_bytes=memory_bytes)
        return operator(torch.ones(34)) + operator(torch.ones(34))

    with pytest.raises(UserError, match=message):
        two_products()


def test_good_loaders():
    operator, expected = Hessian(make(), per_sample, loader()), Hessian(make(), per_sample, [(X, Y)])
    v = torch.ones(operator.size)
    for _ in range(2):
        torch.testing.assert_close(operator(v), expected(v))


def test_bad_vectors_and_settings():
    model = make()
    H = Hessian(model, per_sample, DATA)
    for bad, message in (
        (torch.ones(3), r"vectors of shape \(3,\): must be \(34,\), or \(k, 34\)"),
        (torch.ones(0, 34), r"vectors of shape \(0, 34\)"),
        (torch.ones(34).double(), "vectors of torch.float64 on cpu: the operator's are torch.float32 on cpu; convert"),
        (torch.ones(34, device="meta"), "vectors of torch.float32 on meta"),
        (torch.full((34,), float("nan")), "vectors: hold values that are not finite"),
    ):
        with pytest.raises(UserError, match=message):
            H(bad)
    for loss in (nn.CrossEntropyLoss(reduction="sum"), partial(F.cross_entropy, reduction="sum")):
        with pytest.raises(UserError, match='reduction = "sum": a scalar is taken for the mean'):
            Hessian(model, loss, DATA)
    with pytest.raises(UserError, match="micro_batch = 0: must be at least one sample"):
        Hessian(model, per_sample, DATA, micro_batch=0)


def test_bad_parameters():
    model = make()
    for chosen, message in (
        ([], "Sequential has no parameters that require gradients"),
        (make().parameters(), "parameters: 6 of 6 are not the model's"),
        (model[0].weight, "parameters: one tensor; give a list"),
    ):
        with pytest.raises(UserError, match=message):
            Hessian(model, per_sample, DATA, parameters=chosen)
    with pytest.raises(UserError, match=r"parameter '0.weight' of torch.bfloat16: too coarse for second derivatives"):
        Hessian(make().bfloat16(), per_sample, DATA)
    with pytest.raises(UserError, match="no parameters that require gradients"):
        Hessian(make().requires_grad_(False), per_sample, DATA)
    model[0].to("meta")
    with pytest.raises(UserError, match="parameters on cpu, meta: must be on one device"):
        Hessian(model, per_sample, DATA)


def test_other_errors_pass_through():
    H = Hessian(make(), per_sample, [(torch.ones(4, 9), Y[:4])])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        H(torch.ones(H.size))


def test_contexts_of_the_caller_do_not_matter():
    H = Hessian(make(), per_sample, DATA, memory_bytes=0)
    v = torch.ones(H.size)
    expected = H(v)
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            torch.testing.assert_close(H(v), expected, rtol=0, atol=0)
