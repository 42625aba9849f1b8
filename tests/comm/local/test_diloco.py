from pathlib import Path

import pytest
import torch
from tests.distributed.ranks import run_ranks
from torch import nn

from bigbatch.comm.local.diloco import DiLoCo
from bigbatch.comm.local.local_sgd import LocalSGD
from bigbatch.comm.local.outer import outer_state, outer_step_
from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import Ranks
from bigbatch.core.checks import UserError

SCRIPT = Path(__file__).with_name("outer_ranks.py")


def test_hand_worked():  # u = 2, then 3: 10 - 0.5 (2 + 0.5 x 2), then - 0.5 (2 + 0.5 x 3)
    state = outer_state(torch.tensor([10.0]))
    for expected in (8.5, 6.75):
        outer_step_(state, torch.tensor([2.0]), lr=0.5, momentum=0.5)
        assert state.weights.item() == expected
    state = outer_state(torch.tensor([10.0]))
    for expected in (9.0, 7.5):  # without looking ahead: u = 2, then 3
        outer_step_(state, torch.tensor([2.0]), lr=0.5, momentum=0.5, nesterov=False)
        assert state.weights.item() == expected


def test_half_precision_is_kept_whole():
    """Steps of a thousandth of the weights vanish in bfloat16."""
    state = outer_state(torch.ones(1, dtype=torch.bfloat16))
    for _ in range(10):
        outer_step_(state, torch.tensor([0.001]), lr=1.0, momentum=0.0)
    assert state.weights.item() == pytest.approx(0.99)


@pytest.mark.parametrize(
    ("what", "world"), [("references", 4), ("plain", 3), ("resumes", 3), ("elastic", 3), ("groups", 4), ("compressed", 3), ("refusals", 2)]
)
def test_on_real_processes(tmp_path, what, world):
    run_ranks(SCRIPT, world, tmp_path, what)


def trained(make, updates=12, make_optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=0.1)):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    comm, optimizer = make(model), make_optimizer(model)
    for update in range(updates):
        inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(update), dtype=torch.float64)
        with comm.sync_context(last=True):
            (comm.forward(inputs) - inputs.sum(1, keepdim=True)).square().sum().div(comm.divisor(8, 8)).backward()
        comm.before_step(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        comm.after_step(optimizer, update + 1)
    comm.average_weights(optimizer)
    return [p.detach().clone() for p in model.parameters()]


def test_one_worker_with_outer_rate_1_is_plain_training():
    plain = trained(Comm)
    for make in (lambda m: DiLoCo(m, period=4, outer_lr=1.0, outer_momentum=0.0), lambda m: LocalSGD(m, period=4)):
        assert all(torch.equal(a, b) for a, b in zip(trained(make), plain, strict=True))


def test_one_worker_looks_ahead():
    """With momentum the outer step of one worker alone is not the weights that it reached."""
    (first, *_), (plain, *_) = trained(lambda m: DiLoCo(m, period=4, outer_lr=0.5, outer_momentum=0.0), 4), trained(Comm, 4)
    start = trained(Comm, 0)[0]
    torch.testing.assert_close(first, (start + plain) / 2)  # half of the way


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outer_lr": 0.0}, "outer_lr = 0"),
        ({"outer_momentum": 1.5}, "outer_momentum = 1.5"),
        ({"period": 0}, "period = 0"),
        ({"group_size": 3}, "group_size = 3: must divide the 4 workers"),
        ({"group_size": 2, "start_updates": 8}, "start_updates = 8 with group_size = 2: only one of the two"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        DiLoCo(nn.Linear(1, 1), Ranks(0, 4), **settings)
