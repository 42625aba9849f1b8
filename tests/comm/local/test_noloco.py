import numpy as np
import pytest
import torch
from tests.comm.local.test_diloco import SCRIPT, trained
from tests.distributed.ranks import run_ranks
from torch import nn

from bigbatch.comm.local.noloco import NoLoCo, noloco_step
from bigbatch.core.checks import UserError


def test_hand_worked():  # 0.5 x 2 + 0.25 x 8 + 0.125 x (-8)
    assert noloco_step(torch.tensor([2.0]), torch.tensor([8.0]), torch.tensor([-8.0]), a=0.5, b=0.25, g=0.125).item() == 2.0


def test_a_lost_partner(tmp_path):
    logs = run_ranks(SCRIPT, 4, tmp_path, "lost_partner")
    assert any("worker 3 is lost" in log for log in logs[:3])
    assert not any("worker 0 is lost" in log or "worker 1 is lost" in log or "worker 2 is lost" in log for log in logs)


def test_one_worker_has_momentum_alone():
    """Without a partner the step is b Delta: half of the way."""
    (got, *_), (plain, *_), (start, *_) = (
        trained(make, n)
        for make, n in ((lambda m: NoLoCo(m, period=4, outer_lr=0.5), 4), (lambda m: NoLoCo(m, period=9), 4), (lambda m: NoLoCo(m), 0))
    )
    torch.testing.assert_close(got, (start + plain) / 2)


def test_half_precision_is_kept_whole():
    """phi in bfloat16 would lose steps of a thousandth of the weights."""
    model = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    comm, optimizer = NoLoCo(model, period=1, outer_lr=0.125, outer_momentum=0.0), torch.optim.SGD(model.parameters(), lr=2**-7)
    for update in range(8):
        comm.before_step(optimizer)
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
        comm.after_step(optimizer, update + 1)
    assert model.weight.item() == 1 - 2**-7  # each outer step is less than bfloat16 can take from 1


def spread_after(pull, momentum, exchanges=60, workers=64):
    """How far workers that take no steps are from each other, by the literal rule over random pairs: phi alone."""
    random = np.random.default_rng(0)
    phi, delta = random.normal(size=workers), np.zeros(workers)
    for _ in range(exchanges):
        order = random.permutation(workers).reshape(-1, 2)
        partner = np.empty(workers, dtype=int)
        partner[order[:, 0]], partner[order[:, 1]] = order[:, 1], order[:, 0]
        delta = momentum * delta - pull * (phi - phi[partner]) / 2
        phi = phi + delta
    return phi.std()


@pytest.mark.parametrize("momentum", [0.3, 0.5])
def test_the_bounds_of_the_pull(momentum):
    """Theorem 1: workers come together below sqrt(1/2) (2 + a), and no longer above."""
    bound = 0.5**0.5 * (2 + momentum)
    assert spread_after(0.7, momentum) < 1e-3
    assert spread_after(1.6 * bound, momentum) > 1e3


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"period": 0}, "period = 0"), ({"outer_lr": -1}, "outer_lr = -1"), ({"outer_momentum": 2}, "outer_momentum = 2")],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        NoLoCo(nn.Linear(1, 1), **settings)
