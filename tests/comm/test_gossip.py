import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.distributed.ranks import run_ranks
from tests.reference.decentlam import decentlam
from tests.reference.dmsgd import dmsgd
from torch import nn

from bigbatch.comm.d_psgd import DPSGD
from bigbatch.comm.decentlam import DecentLaM
from bigbatch.comm.dmsgd import DmSGD
from bigbatch.comm.topology import topology

SCRIPT = Path(__file__).with_name("gossip_ranks.py")


@pytest.mark.parametrize("name", ["averages", "refusals"])
def test_ranks(tmp_path, name):
    run_ranks(SCRIPT, 4, tmp_path, name)


def weights_after(update, log):
    (line,) = [line for line in log.splitlines() if line.startswith(f"{update} ")]
    return json.loads(line.partition(" ")[2])


def test_a_lost_neighbour(tmp_path):
    logs = run_ranks(SCRIPT, 4, tmp_path, "lost_neighbour")
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


def heavy_ball_d_psgd(X, gradients, weights, lr, momentum, updates):
    """D-PSGD over momentum SGD: the neighbours' average of the weights, then each one's own step."""
    M = np.zeros_like(X)
    for k in range(updates):
        M = momentum * M + gradients(X)
        X = X @ weights(k).T - lr * M
        yield X


BOUNDS = {  # largest stable rate times curvature, with l the least eigenvalue of W; as the docstrings of the methods have it
    "d_psgd": (heavy_ball_d_psgd, lambda beta, least: (1 + least) * (1 + beta)),
    "dmsgd": (dmsgd, lambda beta, least: min(2 * (1 + beta), (1 - beta) * (1 - 1 / least))),
    "decentlam": (decentlam, lambda beta, least: min(2 * (1 + beta), 1 - 1 / least)),
}


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("name", BOUNDS)
def test_the_largest_stable_rate(name, momentum):
    """On quadratics of curvature 1, from anywhere: the literal references shrink below the bound and grow above it."""
    method, bound = BOUNDS[name]
    weights = topology("ring", 8).weights
    largest = bound(momentum, np.linalg.eigvalsh(weights(0)).min())
    start = np.random.default_rng(0).normal(size=(1, 8))
    for share in (0.93, 1.07):
        size = np.inf
        for X in method(start, lambda X: X, weights, share * largest, momentum, 1500):
            size = np.abs(X).max()
            if size > 1e6:
                break
        assert (size < 1e-3) == (share < 1), f"{size} at {share} of the bound"
