"""Every optimizer and variant against the literal transcription of its paper, for 100 steps in float64."""

from itertools import product

import pytest
import torch
from tests.reference import optimizers as reference

from bigbatch.optim import LAMB, LARS, SGDP, AdamP, Muon

SHAPES = [(6, 4), (5,), (4, 3, 3, 3), (1, 7), (8, 300), (1,)]
ADAM = {"betas": (0.9, 0.99), "eps": 1e-8}


def gradients(step, ws, seed=1):
    """Noisy, and for some tensors nearly at right angles to the weights, so that every branch of the projections is taken."""
    random = torch.Generator().manual_seed(seed * 1000 + step)
    gs = []
    for i, w in enumerate(ws):
        g = torch.randn(w.shape, generator=random, dtype=torch.float64)
        if w.ndim > 1 and (step + i) % 3:
            rows = w.reshape(w.shape[0], -1) if (step + i) % 3 == 1 else w.reshape(1, -1)
            flat = g.reshape(rows.shape)
            g = (flat - rows * (flat * rows).sum(1, keepdim=True) / rows.square().sum(1, keepdim=True)).reshape(w.shape)
        gs.append(torch.zeros_like(g) if step == 7 and i == 0 else g)
    return gs


def compare(make, rule, slots, steps=100, counted=False):
    random = torch.Generator().manual_seed(0)
    ws = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in SHAPES]
    ws[5].zero_()  # a tensor that starts at zero must still move
    params = [w.clone().requires_grad_() for w in ws]
    slow = [(w, *(torch.zeros_like(w) for _ in range(slots))) for w in ws]
    optimizer = make(params)
    for t in range(1, steps + 1):
        gs = gradients(t, [w for w, *_ in slow])
        for p, g in zip(params, gs, strict=True):
            p.grad = g.clone()
        optimizer.step()
        slow = [rule(*state, *([t] if counted else []), g) for state, g in zip(slow, gs, strict=True)]
        for p, g, (w, *_) in zip(params, gs, slow, strict=True):
            assert torch.equal(p.grad, g)
            torch.testing.assert_close(p.detach(), w, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("nesterov", "lr_in_momentum", "adapt", "weight_decay"), [*product([False, True], [True, False], [True, False], [0.0, 0.01])]
)
def test_lars(nesterov, lr_in_momentum, adapt, weight_decay):
    settings = {"momentum": 0.9, "weight_decay": weight_decay, "trust_coefficient": 0.01, "nesterov": nesterov, "eps": 1e-9}
    settings |= {"lr_in_momentum": lr_in_momentum, "adapt": adapt, "lr": 0.5 if adapt else 0.01}
    compare(lambda ps: LARS(ps, **settings), lambda w, v, g: reference.lars(w, v, g, **settings), 1)


@pytest.mark.parametrize(("bias_correction", "adapt", "weight_decay"), [*product([True, False], [True, False], [0.0, 0.1])])
def test_lamb(bias_correction, adapt, weight_decay):
    settings = {**ADAM, "lr": 0.01, "weight_decay": weight_decay, "bias_correction": bias_correction, "adapt": adapt}
    compare(lambda ps: LAMB(ps, **settings), lambda *a: reference.lamb(*a, **settings), 2, counted=True)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamp(weight_decay):
    settings = {**ADAM, "lr": 0.01, "weight_decay": weight_decay}
    compare(lambda ps: AdamP(ps, **settings), lambda *a: reference.adamp(*a, **settings), 2, counted=True)


@pytest.mark.parametrize(("nesterov", "dampening", "weight_decay"), [*product([False, True], [0.0, 0.5], [0.0, 0.01])])
def test_sgdp(nesterov, dampening, weight_decay):
    settings = {"lr": 0.05, "momentum": 0.9, "nesterov": nesterov, "dampening": dampening, "weight_decay": weight_decay}
    compare(lambda ps: SGDP(ps, **settings), lambda *a: reference.sgdp(*a, **settings), 1)


@pytest.mark.parametrize(("nesterov", "scale", "weight_decay"), [*product([False, True], ["matched_rms", "original"], [0.0, 0.1])])
def test_muon(nesterov, scale, weight_decay):
    settings = {"lr": 0.02, "momentum": 0.9, "nesterov": nesterov, "scale": scale, "weight_decay": weight_decay}
    adam = {**ADAM, "lr": 0.01, "weight_decay": weight_decay}

    def make(params):
        stacked = [p for p in params if p.ndim > 1 and p.size(0) % 2 == 0]
        single = [p for p in params if p.ndim > 1 and p.size(0) % 2]
        rest = [p for p in params if p.ndim == 1]
        groups = [
            {"params": stacked, "matrices": 2},
            {"params": single},
            {"params": rest, "orthogonalise": False, "lr": adam["lr"]},
        ]
        return Muon(groups, **settings, **ADAM)

    def rule(w, a, b, t, g):
        if w.ndim == 1:
            return reference.adamw(w, a, b, t, g, **adam)
        return (*reference.muon(w, a, g, matrices=1 + (w.shape[0] % 2 == 0), **settings), b)

    compare(make, rule, 2, counted=True)
