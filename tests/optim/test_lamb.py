from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.optim.compare import ADAM, SHAPES, assert_follows_the_paper, run
from tests.optim.peers import peer as peer_class
from tests.reference import optimizers as reference

from bigbatch.optim import LAMB
from bigbatch.optim.lamb import trust_ratio


def test_hand_worked():  # first step: m^ = g, v^ = g^2, u = sign(g) + w = (4, 5), |w| = 5
    w = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    w.grad = torch.tensor([2.0, 7.0], dtype=torch.float64)
    LAMB([w], lr=0.1, weight_decay=1.0, eps=0.0).step()
    expected = torch.tensor([3.0, 4.0], dtype=torch.float64) - 0.1 * 5 / 41**0.5 * torch.tensor([4.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(w.detach(), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("bias_correction", "adapt", "weight_decay"), [*product([True, False], [True, False], [0.0, 0.1])])
def test_equals_the_paper_for_100_steps(bias_correction, adapt, weight_decay):
    settings = {**ADAM, "lr": 0.01, "weight_decay": weight_decay, "bias_correction": bias_correction, "adapt": adapt}
    assert_follows_the_paper(lambda ps: LAMB(ps, **settings), lambda *a: reference.lamb(*a, **settings), slots=2, counted=True)


@given(lr=st.floats(1e-4, 0.5), steps=st.integers(1, 6), decay=st.floats(0, 1))
def test_every_step_is_lr_times_the_weights_long(lr, steps, decay):
    """pytorch_optimizer's LAMB takes ten times the stated first step (its second moment has no bias correction)."""
    random = torch.Generator().manual_seed(steps)
    w = torch.randn(7, 3, generator=random, dtype=torch.float64).requires_grad_()
    optimizer = LAMB([w], lr=lr, weight_decay=decay)
    for _ in range(steps):
        before = w.detach().clone()
        w.grad = torch.randn(7, 3, generator=random, dtype=torch.float64)
        optimizer.step()
        torch.testing.assert_close((w.detach() - before).norm() / before.norm(), torch.tensor(lr, dtype=torch.float64), rtol=1e-9, atol=0)


def test_the_ratio_is_one_where_a_norm_is_zero():
    assert trust_ratio(torch.tensor([0.0, 2.0]), torch.tensor([3.0, 0.0])).tolist() == [1, 1]


def test_equals_timm_where_the_definitions_agree():
    peer = peer_class("timm.optim.lamb", "Lamb")
    settings = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}
    ours = run(lambda ps: LAMB(ps, **settings), SHAPES, dtype=torch.float64)
    theirs = run(lambda ps: peer(ps, **settings, max_grad_norm=None), SHAPES, dtype=torch.float64)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_peer_that_clips_in_silence_differs():
    """timm's default clips the global norm at 1.0; ours never touches gradients."""
    peer = peer_class("timm.optim.lamb", "Lamb")
    settings = {"lr": 0.01, "eps": 1e-2}
    ours = run(lambda ps: LAMB(ps, **settings), SHAPES[:1])
    theirs = run(lambda ps: peer(ps, **settings), SHAPES[:1])
    assert not torch.allclose(ours[0], theirs[0], rtol=1e-4)


def test_a_peer_that_takes_ten_times_the_stated_step():
    peer = peer_class("pytorch_optimizer", "Lamb")
    w = torch.ones(4, 4, requires_grad=True)
    w.grad = torch.ones(4, 4)
    peer([w], lr=0.01, betas=(0.9, 0.99)).step()
    step = float((1 - w.detach()).norm() / 4)
    assert step == pytest.approx(0.01, rel=0.01) or step > 0.02, "neither the paper's step nor the defect that was known"
