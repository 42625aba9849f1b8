import math

import pytest
import torch
from tests.optim.compare import ADAM, SHAPES, assert_follows_the_paper, run
from tests.optim.peers import peer as peer_class
from tests.reference import optimizers as reference

from bigbatch.optim import AdamP
from bigbatch.optim.projection import radial, row_sums


def test_hand_worked():  # w.g = 0, so project: p = (1, -1), w^ = (0.6, 0.8), w^.p = -0.2, p' = (1.12, -0.84)
    w = torch.tensor([[3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    w.grad = torch.tensor([[4.0, -3.0]], dtype=torch.float64)
    AdamP([w], lr=0.1, eps=0.0, weight_decay=0.5).step()
    decayed = 1 - 0.1 * 0.5 * 0.1
    expected = torch.tensor([[3 * decayed - 0.112, 4 * decayed + 0.084]], dtype=torch.float64)
    torch.testing.assert_close(w.detach(), expected, rtol=1e-14, atol=0)


def test_is_adam_where_the_gradient_points_along_the_weights():
    w = torch.tensor([[3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    w.grad = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    AdamP([w], lr=0.1, eps=0.0, weight_decay=0.5).step()
    torch.testing.assert_close(w.detach(), torch.tensor([[3 * 0.95 - 0.1, 4 * 0.95 - 0.1]], dtype=torch.float64), rtol=1e-14, atol=0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_the_paper_for_100_steps(weight_decay):
    settings = {**ADAM, "lr": 0.01, "weight_decay": weight_decay}
    assert_follows_the_paper(lambda ps: AdamP(ps, **settings), lambda *a: reference.adamp(*a, **settings), slots=2, counted=True)


@pytest.mark.parametrize(("cosine", "projected"), [(0.0, True), (0.99, True), (1.01, False)])
def test_the_threshold_is_delta_over_the_root_of_the_dimension(cosine, projected):
    w = torch.zeros(1, 16, dtype=torch.float64)
    g, w[0, 0] = w.clone(), 1.0
    c = cosine * 0.1 / math.sqrt(16)
    g[0, 0], g[0, 1] = c, math.sqrt(1 - c * c)
    found = radial(row_sums(w, g), lambda: torch.linalg.vecdot(g, w), rows=[1], lengths=[16], delta=0.1, eps=1e-8)
    assert found.projected.tolist() == [projected]


def test_equals_timm():
    peer = peer_class("timm.optim.adamp", "AdamP")
    settings = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    ours = run(lambda ps: AdamP(ps, **settings), SHAPES, dtype=torch.float64)
    theirs = run(lambda ps: peer(ps, **settings), SHAPES, dtype=torch.float64)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
