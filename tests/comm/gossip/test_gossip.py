import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.distributed.ranks import run_ranks
from tests.reference.decentlam import decentlam
from tests.reference.dmsgd import dmsgd
from torch import nn

from bigbatch.comm.gossip import gossip
from bigbatch.comm.gossip.d_psgd import DPSGD
from bigbatch.comm.gossip.decentlam import DecentLaM
from bigbatch.comm.gossip.dmsgd import DmSGD
from bigbatch.comm.gossip.topology import topology
from bigbatch.comm.ranks import Ranks

SCRIPT = Path(__file__).with_name("gossip_ranks.py")


@pytest.mark.parametrize("name", ["averages", "refusals"])
def test_ranks(tmp_path, name):
    run_ranks(SCRIPT, 4, tmp_path, name)


def weights_after(update, log):
    (line,) = [line for line in log.splitlines() if line.startswith(f"{update} ")]
    return json.loads(line.partition(" ")[2])


def test_weights_on_a_gpu(tmp_path):
    """With a stand-in: nothing mixes devices, and messages by gloo are the CPU's."""
    run_ranks(SCRIPT, 2, tmp_path, "on_a_gpu", "methods")


@pytest.mark.parametrize("arguments", [["lost_neighbour"], ["on_a_gpu", "lost"]])
def test_a_lost_neighbour(tmp_path, arguments):
    logs = run_ranks(SCRIPT, 4, tmp_path, *arguments)
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
    with comm.sync_context(last=True):
        model(torch.ones(4, 2)).sum().backward()
    expected = [p - 0.1 * p.grad for p in model.parameters()]
    comm.before_step(optimizer)
    optimizer.step()
    comm.after_step(optimizer, 1)
    for p, value in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), value.detach())
    assert comm.metrics() == {}


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


@pytest.mark.parametrize("coalesced", [True, False])
def test_between_gpus_all_messages_of_an_update_go_in_one_call(monkeypatch, coalesced):
    """As NCCL has it: one thing to wait for, or one for each message; buffers are used again."""
    calls, waited = [], []

    class Work:
        def __init__(self, ops):
            self.ops = ops

        def wait(self):
            waited.append(len(self.ops))
            for receive, buffer, peer in self.ops:
                if receive:
                    buffer.fill_(10.0 * peer)

    def batch(ops):
        calls.append([buffer.data_ptr() for receive, buffer, _ in ops if receive])
        return [Work(ops)] if coalesced else [Work([op]) for op in ops]

    nccl = SimpleNamespace(P2POp=lambda act, tensor, peer: (act, tensor, peer), irecv=True, isend=False, batch_isend_irecv=batch)
    monkeypatch.setattr(gossip, "dist", nccl)
    monkeypatch.setattr(gossip, "backend_of", lambda device: "nccl")
    exchange = gossip.NeighbourExchange(topology("ring", 4), Ranks(0, 4))
    for update in range(2):
        exchange.start(torch.full((3,), 1.0), update)
        expected = (10.0 - 1.0) / 3 + (30.0 - 1.0) / 3  # a ring of four weighs each neighbour by a third
        torch.testing.assert_close(exchange.wait(), torch.full((3,), expected))
        assert len(waited) == (1 if coalesced else 4) * (update + 1)
    assert len(calls[0]) == 2
    assert set(calls[1]) == set(calls[0])
    assert exchange.sent_bytes == 2 * 2 * 12


def test_a_lost_neighbour_is_never_left_to_nccl(monkeypatch):
    monkeypatch.setattr(gossip, "backend_of", lambda device: "nccl")
    monkeypatch.setattr(gossip, "cpu_group", lambda: "a group of gloo")
    ring, ranks = topology("ring", 4), Ranks(0, 4)
    assert [gossip.NeighbourExchange(ring, ranks, tolerant=tolerant)._group for tolerant in (False, True)] == [None, "a group of gloo"]
