from itertools import product

import pytest
import torch
from tests.optim.compare import assert_follows_the_paper
from tests.reference import optimizers as reference

from bigbatch.optim import SGDP


def test_hand_worked():  # g at right angles to w; the old momentum (1, 0) is not: v = (0.5, 0) + (4, -3), w^.v = 0.6 x 0.5
    w = torch.tensor([[3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    optimizer = SGDP([w], lr=0.1, momentum=0.5, weight_decay=0.2)
    w.grad = torch.zeros_like(w)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.state[w]["momentum_buffer"].copy_(torch.tensor([[1.0, 0.0]]))
    w.grad = torch.tensor([[4.0, -3.0]], dtype=torch.float64)
    optimizer.step()
    kept = 1 - 0.1 * 0.2 * 0.1 / 0.5
    expected = torch.tensor([[3 * kept - 0.1 * (4.5 - 0.18), 4 * kept - 0.1 * (-3.0 - 0.24)]], dtype=torch.float64)
    torch.testing.assert_close(w.detach(), expected, rtol=1e-8, atol=0)
    buffer = optimizer.state[w]["momentum_buffer"]
    torch.testing.assert_close(buffer, torch.tensor([[4.5, -3.0]], dtype=torch.float64), rtol=1e-14, atol=0)  # not projected


@pytest.mark.parametrize(("nesterov", "dampening", "weight_decay"), [*product([False, True], [0.0, 0.5], [0.0, 0.01])])
def test_equals_the_paper_for_100_steps(nesterov, dampening, weight_decay):
    settings = {"lr": 0.05, "momentum": 0.9, "nesterov": nesterov, "dampening": dampening, "weight_decay": weight_decay}
    assert_follows_the_paper(lambda ps: SGDP(ps, **settings), lambda *a: reference.sgdp(*a, **settings), slots=1)
