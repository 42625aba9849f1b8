from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.optim.compare import SHAPES, assert_follows_the_paper, run
from tests.optim.peers import peer as peer_class
from tests.reference import optimizers as reference

from bigbatch.optim import LARS
from bigbatch.optim.lars import _norm, trust_ratio


def test_hand_worked():  # |w| = 5, |g| = 10, beta = 1: lambda = 0.3 x 5 / (10 + 5) = 0.1, d = g + w = (3, 14)
    w = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    optimizer = LARS([w], lr=2.0, momentum=0.5, weight_decay=1.0, trust_coefficient=0.3)
    w.grad = torch.tensor([0.0, 10.0], dtype=torch.float64)
    optimizer.step()  # v = 2 x 0.1 x d = (0.6, 2.8)
    torch.testing.assert_close(w.detach(), torch.tensor([2.4, 1.2], dtype=torch.float64), rtol=1e-14, atol=0)
    torch.testing.assert_close(optimizer.state[w]["momentum_buffer"], torch.tensor([0.6, 2.8], dtype=torch.float64), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("nesterov", "lr_in_momentum", "adapt", "weight_decay"), [*product([False, True], [True, False], [True, False], [0.0, 0.01])]
)
def test_equals_the_paper_for_100_steps(nesterov, lr_in_momentum, adapt, weight_decay):
    settings = {"momentum": 0.9, "weight_decay": weight_decay, "trust_coefficient": 0.01, "nesterov": nesterov, "eps": 1e-9}
    settings |= {"lr_in_momentum": lr_in_momentum, "adapt": adapt, "lr": 0.5 if adapt else 0.01}
    assert_follows_the_paper(lambda ps: LARS(ps, **settings), lambda w, v, g: reference.lars(w, v, g, **settings), slots=1)


@given(scale=st.floats(1e-3, 1e3))
def test_the_step_does_not_depend_on_the_length_of_the_gradient(scale):
    def step(factor):
        w = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64, requires_grad=True)
        w.grad = factor * torch.tensor([[0.3, 0.1], [-1.0, 2.0]], dtype=torch.float64)
        LARS([w], lr=1.0).step()
        return w.detach()

    torch.testing.assert_close(step(scale), step(1.0), rtol=1e-12, atol=0)


def test_a_changed_rate_tells_the_two_placements_apart():
    def two_steps(**settings):
        w = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
        optimizer = LARS([w], lr=0.1, momentum=0.5, adapt=False, **settings)
        for lr in (0.1, 0.01):
            optimizer.param_groups[0]["lr"] = lr
            w.grad = torch.ones_like(w)
            optimizer.step()
        return w.item()

    assert two_steps() == pytest.approx(1 - 0.1 - (0.05 + 0.01))
    assert two_steps(lr_in_momentum=False) == pytest.approx(1 - 0.1 - 0.01 * 1.5)


def test_the_ratio_is_one_where_a_norm_is_zero():
    norms = torch.tensor([0.0, 2.0, 0.0]), torch.tensor([3.0, 0.0, 0.0])
    assert trust_ratio(*norms, trust_coefficient=0.1, weight_decay=0.5, eps=1.0).tolist() == [1, 1, 1]


@pytest.mark.parametrize("lr", [0.5, 1e-6])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize(("lr_in_momentum", "maximize", "adapt"), [*product([True, False], repeat=3)])
def test_the_pass_of_float32_on_a_cpu_is_the_same_rule(lr_in_momentum, maximize, adapt, weight_decay, lr):
    """Against the path of every other type and device, with tensors that start at zero and gradients that are zero."""

    def trained(dtype):
        random = torch.Generator().manual_seed(0)
        params = [torch.randn(s, generator=random).to(dtype).requires_grad_() for s in SHAPES]
        start = [p.detach().zero_().clone() if i == 1 else p.detach().clone() for i, p in enumerate(params)]
        settings = {"weight_decay": weight_decay, "lr_in_momentum": lr_in_momentum, "maximize": maximize, "adapt": adapt}
        optimizer = LARS(params, lr=lr, trust_coefficient=0.1, **settings)
        for step in range(5):
            for i, p in enumerate(params):
                p.grad = torch.zeros_like(p) if step == 2 and i == 0 else torch.randn(p.shape, generator=random).to(dtype)
            optimizer.step()
        buffers = [optimizer.state[p]["momentum_buffer"] for p in params]
        return [p.detach() - s for p, s in zip(params, start, strict=True)], buffers

    (moved, buffers), (exact, exact_buffers) = trained(torch.float32), trained(torch.float64)
    for a, b in zip(buffers, exact_buffers, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6 * b.abs().max().item())
    for a, b in zip(moved, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


def test_norms_of_large_tensors_are_exact_to_float32():
    """A float32 sum over these was off by 0.2 %, and the step with it."""
    w = torch.full((2**24,), 0.05) + 0.01 * torch.rand(2**24, generator=torch.Generator().manual_seed(0))
    assert _norm(w.view(2**12, -1)) == pytest.approx(w.double().norm().item(), rel=1e-6)


def test_equals_open_lars_where_the_definitions_agree():
    peer = peer_class("open_lars", "LARS")  # it leaves tensors of one dimension unadapted and reads lambda back to the host
    settings = {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.01, "trust_coefficient": 0.01, "eps": 1e-8}
    matrices = [shape for shape in SHAPES if len(shape) > 1]
    ours = run(lambda ps: LARS(ps, **settings), matrices, dtype=torch.float64)
    theirs = run(lambda ps: peer(ps, **settings), matrices, dtype=torch.float64)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
