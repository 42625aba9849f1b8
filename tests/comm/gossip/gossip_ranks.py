"""One rank of the tests of gossip: methods on quadratics, each against its literal reference.

f_i(x) = (x - c_i)' A_i (x - c_i) / 2,   gradient A_i (x - c_i), in float64
"""

import os
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tests import stand_in
from tests.distributed.ranks import leave, meet
from tests.reference.d_psgd import d_psgd
from tests.reference.decentlam import decentlam
from tests.reference.dmsgd import dmsgd
from torch import nn

from bigbatch.comm.gossip.d_psgd import DPSGD
from bigbatch.comm.gossip.decentlam import DecentLaM
from bigbatch.comm.gossip.dmsgd import DmSGD
from bigbatch.comm.gossip.topology import from_weights, topology
from bigbatch.comm.ranks import Ranks
from bigbatch.core.checks import UserError

DIMENSION, LR = 5, 0.05
PLACE = {"device": torch.device("cpu"), "moved": lambda model: model, "put": lambda tensor: tensor}
METHODS = {"d_psgd": (DPSGD, d_psgd), "dmsgd": (DmSGD, dmsgd), "decentlam": (DecentLaM, decentlam)}


class Point(nn.Module):
    """Weights in two pieces, so that flattening is seen."""

    def __init__(self, x):
        super().__init__()
        self.head, self.tail = nn.Parameter(x[:2].reshape(2, 1).clone()), nn.Parameter(x[2:].clone())

    def value(self):
        return torch.cat([self.head.reshape(-1), self.tail])


def problem(world, seed=0):
    random = np.random.default_rng(seed)
    roots = random.normal(size=(world, DIMENSION, DIMENSION))
    A = roots @ roots.transpose(0, 2, 1) / DIMENSION + np.eye(DIMENSION)
    return A, random.normal(size=(DIMENSION, world)), random.normal(size=DIMENSION)


def run(rank, method, graph, *, world, updates, momentum=0.0, weight_decay=0.0, lr=LR, A, C, start, reference=True):
    """This rank's trajectory by real processes, compared with the reference after every update; returns its last x."""
    ranks = Ranks(rank, world, PLACE["device"])
    model = PLACE["moved"](Point(torch.from_numpy(start if rank == 0 else start + 1.0)))  # all become the first's
    made = from_weights(graph) if isinstance(graph, np.ndarray) else topology(graph, world)
    comm = METHODS[method][0](model, ranks, topology=made)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    own_A, own_c = (PLACE["put"](torch.from_numpy(values)) for values in (A[rank], C[:, rank]))

    def gradients(X):
        return np.stack([A[i] @ (X[:, i] - C[:, i]) + weight_decay * X[:, i] for i in range(world)], axis=1)

    arguments = (lr, updates) if method == "d_psgd" else (lr, momentum, updates)
    expected = METHODS[method][1](np.tile(start[:, None], world), gradients, made.weights, *arguments) if reference else None
    for update in range(updates):
        with comm.sync_context(last=True):
            d = model.value() - own_c
            ((own_A * d).sum(1).mul(d).sum() / 2 / comm.divisor(world, 1)).backward()
        comm.before_step(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        comm.after_step(optimizer, update + 1)
        if expected is not None:
            np.testing.assert_allclose(model.value().detach().to("cpu").numpy(), next(expected)[:, rank], rtol=0, atol=1e-10)
    return comm, model, optimizer


def recursion(rank, world, method):
    """The method's recursion, over topologies that stay, are directed, and change; with weight decay inside the gradient."""
    A, C, start = problem(world)
    graphs = ["ring", "torus", "symmetric_exponential", "random_match"]
    for graph in graphs if method == "decentlam" else [*graphs, "exponential", "one_peer_exponential", "star"]:
        for momentum in (0.0,) if method == "d_psgd" else (0.0, 0.9):
            run(rank, method, graph, world=world, updates=60, momentum=momentum, weight_decay=0.01, A=A, C=C, start=start)


def limits(rank, world):
    """What momentum does to the limit on heterogeneous quadratics: the squared distance from the optimum, mean over workers.

    The scale of c is such that the limit without momentum is 0.00846, as in the notes on the paper; the others follow.
    """
    C = np.random.default_rng(1).normal(size=(DIMENSION, world))
    C -= C.mean(axis=1, keepdims=True)
    spectrum, vectors = np.linalg.eigh(topology("ring", world).weights(0))
    gain = vectors @ np.diag(spectrum * 0.01 / (1 - spectrum * 0.99)) @ vectors.T  # of the fixed point x = W (x - gamma (x - c))
    C *= np.sqrt(0.00846 / ((C @ gain) ** 2).sum(axis=0).mean())
    A = np.tile(np.eye(DIMENSION), (world, 1, 1))
    for method in ("decentlam", "dmsgd"):
        found = []
        for momentum in (0.0, 0.5, 0.8, 0.9):
            settings = {"world": world, "updates": 300, "momentum": momentum, "lr": 0.01, "A": A, "C": C, "start": np.zeros(DIMENSION)}
            _, model, _ = run(rank, method, "ring", reference=False, **settings)
            total = model.value().detach().square().sum().reshape(1)
            dist.all_reduce(total)
            found.append(float(total) / world)
        if rank == 0:
            print(method, *(f"{value:.5f}" for value in found))


def averages(rank, world):
    """Evaluation and checkpoints see the average, training goes on from each one's own, and a resume is exact."""
    A, C, start = problem(world)
    settings = {"world": world, "updates": 20, "momentum": 0.9, "A": A, "C": C, "start": start}
    comm, model, optimizer = run(rank, "decentlam", "ring", **settings)
    own = model.value().detach().clone()
    everyone = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(everyone, own)
    mean = torch.stack(everyone).mean(0)
    with comm.averaged_weights(optimizer):
        torch.testing.assert_close(model.value().detach(), mean, rtol=0, atol=1e-12)
        saved, states = comm.state_dict(), comm.full_state_dicts(optimizer)
        saved = {**saved, "own": [t.clone() for t in saved["own"]]}
        states = ({k: v.clone() for k, v in states[0].items()}, states[1])
    assert torch.equal(model.value(), own)
    distance = float((torch.stack(everyone) - mean).square().sum(1).mean().sqrt())
    assert comm.metrics()["distance"] == pytest.approx(distance, rel=1e-9)
    assert comm.metrics()["relative_distance"] == pytest.approx(distance / float(mean.norm()), rel=1e-9)
    assert comm.metrics()["sent_bytes"] == 20 * 2 * DIMENSION * 8
    again = Point(torch.zeros(DIMENSION, dtype=torch.float64))
    other = DecentLaM(again, Ranks(rank, world), topology=topology("ring", world))
    resumed = torch.optim.SGD(again.parameters(), lr=LR, momentum=0.9)
    others = [None] * world
    dist.all_gather_object(others, saved)
    other.load_state_dicts(others)
    other.load_full_state_dicts(resumed, *states)
    assert torch.equal(again.value(), own)
    assert other.updates == 20
    other.load_state_dicts(others[:-1])  # a worker more than there were: all start from the mean
    other.load_full_state_dicts(resumed, *states)
    torch.testing.assert_close(again.value().detach(), mean, rtol=0, atol=1e-12)
    comm.average_weights(optimizer)
    torch.testing.assert_close(model.value().detach(), mean, rtol=0, atol=1e-12)


def refusals(rank, world):
    model, ranks = Point(torch.zeros(DIMENSION)), Ranks(rank, world)
    with pytest.raises(UserError, match=f"none given to {world} workers"):
        DPSGD(model, ranks)
    with pytest.raises(UserError, match=f"a topology of {world + 2} workers given to {world} workers"):
        DPSGD(model, ranks, topology=topology("ring", world + 2))
    with pytest.raises(UserError, match="topology exponential: is directed, but DecentLaM needs symmetric weights"):
        DecentLaM(model, ranks, topology=topology("exponential", world))
    apart = topology("ring", world)._replace(name="apart", weights=lambda update: np.eye(world))
    with pytest.raises(UserError, match="topology apart: worker 1 can't be reached from worker 0"):
        DPSGD(model, ranks, topology=apart)
    comm = DmSGD(model, ranks, topology=topology("ring", world))
    comm.after_step(torch.optim.SGD(model.parameters(), lr=0.1), 3)
    with pytest.raises(UserError, match="update 3 after 0: must be consecutive; pass one more"):
        comm.after_step(torch.optim.SGD(model.parameters(), lr=0.1), 4)
    comm = DecentLaM(model, ranks, topology=topology("ring", world))
    with pytest.raises(UserError, match="DecentLaM over Adam: needs heavy-ball momentum"):
        comm.before_step(torch.optim.Adam(model.parameters()))
    with pytest.raises(UserError, match="use torch.optim.SGD without nesterov"):
        comm.before_step(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True))


def on_a_gpu(rank, world, what):
    """The same with weights on a GPU, as far as they say, and messages by gloo; waits for the GPU once an update."""
    PLACE.update(device=stand_in.GPU, moved=stand_in.moved, put=stand_in.OnGPU)
    A, C, start = problem(world)
    with stand_in.Moves():
        if what == "lost":
            lost_neighbour(rank, world)
            return
        for method, momentum in (("d_psgd", 0.0), ("dmsgd", 0.9), ("decentlam", 0.9)):
            stand_in.waits.clear()
            run(rank, method, "ring", world=world, updates=20, momentum=momentum, weight_decay=0.01, A=A, C=C, start=start)
            assert len(stand_in.waits) <= 2 * 20 + 2, "this test's own look at the weights, and the message"


def lost_neighbour(rank, world):
    """The last worker dies in the middle; the others go on, each noticing by itself, and keep their own mean."""
    random = torch.Generator().manual_seed(rank)
    model = PLACE["moved"](Point(torch.randn(DIMENSION, generator=random, dtype=torch.float64)))
    comm = DmSGD(model, Ranks(rank, world, PLACE["device"]), topology=topology("ring", world), tolerant=True)
    with torch.no_grad():
        model.tail.add_(PLACE["put"](torch.randn(3, generator=random, dtype=torch.float64)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for update in range(10):
        if update == 3 and rank == world - 1:
            os._exit(0)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            comm.after_step(optimizer, update + 1)
        if said:
            print(f"update {update}: {said[0].message}")
        if update in (4, 9):
            print(update, model.value().detach().to("cpu").tolist())


if __name__ == "__main__":
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=rank, world_size=world)
    torch.set_default_dtype(torch.float64)
    globals()[sys.argv[1]](rank, world, *sys.argv[2:])
    meet(world - ("lost" in " ".join(sys.argv[1:])))
    leave()
