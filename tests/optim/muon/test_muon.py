from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.optim.compare import ADAM, assert_follows_the_paper, run
from tests.reference import optimizers as reference
from torch import nn

from bigbatch.core.checks import UserError
from bigbatch.optim import Muon, muon_groups
from bigbatch.optim.muon.newton_schulz import orthogonalise


def test_hand_worked():  # rank one: Newton-Schulz works on one singular value from 1; x <- 3.4445 x - 4.775 x^3 + 2.0315 x^5 five times
    x = 1.0
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    w = torch.zeros(2, 8, dtype=torch.float64, requires_grad=True)
    w.grad = torch.zeros_like(w)
    w.grad[0, 0] = 7.0
    Muon([w], lr=0.5).step()
    assert w[0, 0].item() == pytest.approx(-0.5 * 0.2 * 8**0.5 * x, rel=1e-12)
    assert w.count_nonzero() == 1


@given(rows=st.integers(2, 9), columns=st.integers(2, 9), seed=st.integers(0, 100), scale=st.floats(1e-3, 1e3))
def test_singular_values_end_near_one_and_vectors_stay(rows, columns, seed, scale):
    random = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(rows, columns, generator=random, dtype=torch.float64), full_matrices=False)
    s = torch.rand(len(v), generator=random, dtype=torch.float64) * 0.9 + 0.1
    got = u.mT @ orthogonalise(scale * u @ torch.diag(s) @ v) @ v.mT
    off = got - torch.diag(got.diagonal())
    assert off.abs().max() < 1e-9
    assert 0.65 < got.diagonal().min() <= got.diagonal().max() < 1.25


@pytest.mark.parametrize(("nesterov", "scale", "weight_decay"), [*product([False, True], ["matched_rms", "original"], [0.0, 0.1])])
def test_equals_the_paper_for_100_steps(nesterov, scale, weight_decay):
    settings = {"lr": 0.02, "momentum": 0.9, "nesterov": nesterov, "scale": scale, "weight_decay": weight_decay}
    adam = {**ADAM, "lr": 0.01, "weight_decay": weight_decay}

    def make(params):
        stacked = [p for p in params if p.ndim > 1 and p.size(0) % 2 == 0]
        single = [p for p in params if p.ndim > 1 and p.size(0) % 2]
        rest = [p for p in params if p.ndim == 1]
        groups = [{"params": stacked, "matrices": 2}, {"params": single}, {"params": rest, "orthogonalise": False, "lr": adam["lr"]}]
        return Muon(groups, **settings, **ADAM)

    def rule(w, a, b, t, g):
        if w.ndim == 1:
            return reference.adamw(w, a, b, t, g, **adam)
        return (*reference.muon(w, a, g, matrices=1 + (w.shape[0] % 2 == 0), **settings), b)

    assert_follows_the_paper(make, rule, slots=2, counted=True)


@pytest.mark.parametrize(("ours", "theirs"), [("matched_rms", "match_rms_adamw"), ("original", "original")])
def test_equals_torch_on_matrices(ours, theirs):
    settings = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    shapes = [(6, 4), (4, 6), (30, 20)]
    mine = run(lambda ps: Muon(ps, **settings, scale=ours), shapes)
    peers = run(lambda ps: torch.optim.Muon(ps, **settings, adjust_lr_fn=theirs), shapes)
    for a, b in zip(mine, peers, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-3)  # both orthogonalise in bfloat16, batched differently


def test_groups_tell_matrices_from_the_rest():
    model = nn.Sequential(
        nn.Embedding(5, 6), nn.LSTM(6, 4), nn.Conv2d(1, 2, 3), nn.LayerNorm(4), nn.MultiheadAttention(6, 2), nn.Linear(4, 2)
    )
    groups = muon_groups(model, lr=0.1, adam_lr=0.01, weight_decay=0.2)
    seen = {(g["matrices"], g["orthogonalise"], g["lr"], g["weight_decay"]): len(g["params"]) for g in groups}
    assert seen == {(4, True, 0.1, 0.2): 2, (1, True, 0.1, 0.2): 2, (3, True, 0.1, 0.2): 1, (1, False, 0.01, 0.0): 10}
    assert sum(seen.values()) == len(list(model.parameters()))
    everything = muon_groups(model, lr=0.1, adam_lr=0.01, head="0")
    assert sum(len(g["params"]) for g in everything if g["orthogonalise"]) == 6
    with pytest.raises(UserError, match="unknown module 'heat'"):
        muon_groups(model, lr=0.1, adam_lr=0.01, head="heat")


def test_gates_are_orthogonalised_one_by_one():
    w = torch.randn(8, 3, dtype=torch.float64).requires_grad_()
    w.grad = torch.randn(8, 3, dtype=torch.float64)
    w.grad[:2] *= 1e-6  # a gate with a tiny gradient moves as far as the others
    before = w.detach().clone()
    Muon([w], lr=1.0, matrices=4).step()
    moved = [(part - old).norm() for part, old in zip(w.detach().chunk(4), before.chunk(4), strict=True)]
    assert max(moved) / min(moved) < 2


@pytest.mark.parametrize(
    ("params", "settings", "message"),
    [
        ([torch.zeros(3, requires_grad=True)], {}, "has no matrix"),
        ([torch.zeros(3, 2, requires_grad=True)], {"matrices": 2}, "must divide the 3 rows"),
        ([torch.zeros(3, 2, requires_grad=True)], {"scale": "orignal"}, "did you mean 'original'"),
        ([torch.zeros(3, 2, requires_grad=True)], {"steps": 0}, "steps = 0"),
    ],
)
def test_bad_settings(params, settings, message):
    with pytest.raises(UserError, match=message):
        Muon(params, **settings)
