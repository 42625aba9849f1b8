import json
from pathlib import Path

import pytest
import torch
from tests.distributed.ranks import run_ranks
from torch import nn

from bigbatch.comm.d_psgd import DPSGD
from bigbatch.comm.decentlam import DecentLaM
from bigbatch.comm.dmsgd import DmSGD

SCRIPT = Path(__file__).with_name("gossip_ranks.py")


@pytest.mark.parametrize("name", ["averages", "refusals"])
def test_ranks(tmp_path, name):
    run_ranks(SCRIPT, 4, tmp_path, name, timeout_s=60)


def weights_after(update, log):
    (line,) = [line for line in log.splitlines() if line.startswith(f"{update} ")]
    return json.loads(line.partition(" ")[2])


def test_a_lost_neighbour(tmp_path):
    logs = run_ranks(SCRIPT, 4, tmp_path, "lost_neighbour", timeout_s=60)
    assert "worker 3 is lost" in logs[0]
    assert "worker 3 is lost" in logs[2]
    assert "is lost" not in logs[1]  # no neighbour of worker 3
    before, after = (torch.tensor([weights_after(update, log) for log in logs[:3]]) for update in (4, 9))
    torch.testing.assert_close(before.mean(0), after.mean(0))  # what is left keeps its mean
    assert (after - after.mean(0)).norm() < 0.5 * (before - before.mean(0)).norm()  # and comes nearer to it


@pytest.mark.parametrize("method", [DPSGD, DmSGD, DecentLaM])
def test_alone_there_is_nobody_to_ask(method):
    model = nn.Linear(2, 1)
    comm, optimizer = method(model), torch.optim.SGD(model.parameters(), lr=0.1)
    with comm.passing(last=True):
        model(torch.ones(4, 2)).sum().backward()
    expected = [p - 0.1 * p.grad for p in model.parameters()]
    comm.before_step(optimizer)
    optimizer.step()
    comm.after_step(optimizer, 1)
    for p, value in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), value.detach())
    assert comm.facts() == {}
