"""One rank of the tests of outer optimizers: methods on quadratics, each against its literal reference.

f_i(x) = (x - c_i)' A_i (x - c_i) / 2,   gradient A_i (x - c_i), in float64
"""

import os
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tests.distributed.ranks import leave, meet
from tests.reference.diloco import diloco
from tests.reference.noloco import noloco
from tests.reference.streaming_diloco import streaming_diloco
from torch import nn

from bigbatch.comm.all_reduce import AllReduce
from bigbatch.comm.compression.compressor import HalfPrecision
from bigbatch.comm.compression.quantized import Quantized
from bigbatch.comm.compression.sparse_loco import SparseLoCo
from bigbatch.comm.compression.top_k import TopK
from bigbatch.comm.gossip.topology import topology
from bigbatch.comm.local.diloco import DiLoCo
from bigbatch.comm.local.local_sgd import LocalSGD
from bigbatch.comm.local.noloco import NoLoCo
from bigbatch.comm.local.streaming_diloco import StreamingDiLoCo
from bigbatch.comm.ranks import Ranks
from bigbatch.core.checks import CheckpointError, UserError

DIMENSION, LR, MOMENTUM, UPDATES = 6, 0.05, 0.9, 40
OUTER = {"outer_lr": 0.7, "outer_momentum": 0.6}


class Point(nn.Module):
    """Weights in three modules, two values each, so that fragments and flattening are seen."""

    def __init__(self, x):
        super().__init__()
        self.parts = nn.ModuleList(nn.Module() for _ in range(3))
        for i, part in enumerate(self.parts):
            part.w = nn.Parameter(x[2 * i : 2 * i + 2].clone())

    def forward(self, own_A, own_c):
        d = self.value() - own_c
        return (own_A * d).sum(1).mul(d).sum() / 2

    def value(self):
        return torch.cat([part.w for part in self.parts])


def problem(world):
    random = np.random.default_rng(0)
    roots = random.normal(size=(world, DIMENSION, DIMENSION))
    A = roots @ roots.transpose(0, 2, 1) / DIMENSION + np.eye(DIMENSION)
    return A, random.normal(size=(DIMENSION, world)), random.normal(size=DIMENSION)


class Run:
    """This rank's part of a run on the quadratics."""

    def __init__(self, rank, world, make, *, like_all=False, momentum=MOMENTUM):
        self.A, self.C, self.start = problem(world)
        self.rank, self.world = rank, world
        self.own = tuple(torch.from_numpy(v) for v in ((self.A.mean(0), self.C.mean(1)) if like_all else (self.A[rank], self.C[:, rank])))
        self.model = Point(torch.from_numpy(self.start if rank == 0 else self.start + 1.0))  # all become the first's
        self.comm = make(self.model, Ranks(rank, world))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=momentum)

    def go(self, first, last, expected=None):
        for update in range(first, last):
            with self.comm.sync_context(last=True):
                (self.comm.forward(*self.own) / self.comm.divisor(self.world, 1)).backward()
            self.comm.before_step(self.optimizer)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.comm.after_step(self.optimizer, update + 1)
            if expected is not None:
                np.testing.assert_allclose(self.value(), next(expected)[:, self.rank], rtol=0, atol=1e-12)
        return self

    def value(self):
        return self.model.value().detach().numpy().copy()

    def gradients(self, X):
        return np.stack([self.A[i] @ (X[:, i] - self.C[:, i]) for i in range(self.world)], axis=1)

    def equal_columns(self):
        return np.tile(self.start[:, None], self.world)

    def state(self):
        """What a checkpoint holds, of all ranks."""
        with self.comm.averaged_weights(self.optimizer):
            own, whole = self.comm.state_dict(), self.comm.full_state_dicts(self.optimizer)
            own = torch.load(_saved(own), weights_only=True)
            whole = torch.load(_saved(whole), weights_only=False)
        states = [None] * self.world
        dist.all_gather_object(states, own)
        return states, whole

    def load(self, states, whole):
        self.comm.load_state_dicts(states)
        self.comm.load_full_state_dicts(self.optimizer, *whole)
        return self


def _saved(value):
    import io

    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


def references(rank, world):
    """Every method, update by update, to 1e-12."""
    for period in (1, 4, 7):
        for nesterov in (True, False):
            run = Run(rank, world, lambda m, r, p=period, n=nesterov: DiLoCo(m, r, period=p, nesterov=n, **OUTER))
            run.go(0, UPDATES, diloco(run.equal_columns(), run.gradients, LR, MOMENTUM, UPDATES, period=period, nesterov=nesterov, **OUTER))
    for fragments, overlap, mix in ((1, 0, 0.5), (2, 0, 0.5), (2, 2, 0.5), (3, 1, 0.25), (3, 5, 0.0)):
        settings = {"period": 6, "overlap": overlap, "mix": mix, **OUTER}
        run = Run(rank, world, lambda m, r, f=fragments, s=settings: StreamingDiLoCo(m, r, fragments=f, **s))
        rows = [[i for part in range(p, 3, fragments) for i in (2 * part, 2 * part + 1)] for p in range(fragments)]
        run.go(0, UPDATES, streaming_diloco(run.equal_columns(), run.gradients, LR, MOMENTUM, UPDATES, fragments=rows, **settings))
    if world % 2 == 0:
        weights = topology("random_match", world).weights

        def partners(exchange):
            return [next(j for j in range(world) if j != i and weights(exchange)[i, j]) for i in range(world)]

        for pull in (None, 0.9):
            run = Run(rank, world, lambda m, r, p=pull: NoLoCo(m, r, period=5, outer_lr=0.6, outer_momentum=0.5, pull=p))
            a_b_g = {"a": 0.5, "b": 0.6, "g": pull or 0.6}
            run.go(0, UPDATES, noloco(run.equal_columns(), run.gradients, partners, LR, MOMENTUM, UPDATES, period=5, **a_b_g))
            assert run.comm.metrics()["sent_bytes"] == UPDATES // 5 * 2 * DIMENSION * 8


def plain(rank, world):
    """Outer rate 1 and momentum 0 are local SGD bit for bit; a period of 1 with plain SGD is all-reduce."""
    for settings in ({"momentum": "average"}, {"momentum": "keep"}, {"momentum": "reset"}, {"period_warmup": 12}, {"start_updates": 9}):
        ways = [
            lambda m, r, s=settings: LocalSGD(m, r, period=4, **s),
            lambda m, r, s=settings: DiLoCo(m, r, period=4, outer_lr=1.0, outer_momentum=0.0, **{"momentum": "average", **s}),
        ]
        one, other = (Run(rank, world, way).go(0, 30) for way in ways)
        assert np.array_equal(one.value(), other.value()), settings
    for outer in (DiLoCo, StreamingDiLoCo):
        fragments = {"fragments": 1, "overlap": 0} if outer is StreamingDiLoCo else {}
        ends = []
        for make in (AllReduce, lambda m, r, o=outer, f=fragments: o(m, r, period=1, outer_lr=1.0, outer_momentum=0.0, **f)):
            run = Run(rank, world, make)
            run.optimizer = torch.optim.SGD(run.model.parameters(), lr=LR)
            ends.append(run.go(0, 30).value())
        np.testing.assert_allclose(ends[0], ends[1], rtol=0, atol=1e-12)


COMPRESSED = {
    "diloco": lambda m, r: DiLoCo(m, r, period=4, **OUTER),
    "inner state averaged": lambda m, r: DiLoCo(m, r, period=4, momentum="average", **OUTER),
    "top-k": lambda m, r: DiLoCo(m, r, period=4, compressor=TopK(0.3), **OUTER),
    "4 bits": lambda m, r: DiLoCo(m, r, period=4, compressor=Quantized("int4", block=4), **OUTER),
    "streaming in 4 bits": lambda m, r: StreamingDiLoCo(
        m, r, period=6, fragments=2, overlap=3, compressor=Quantized("int4", block=2), **OUTER
    ),
    "SparseLoCo": lambda m, r: DiLoCo(m, r, period=4, outer_lr=1.0, outer_momentum=0.0, compressor=SparseLoCo(chunk=4, top=1)),
    "streaming": lambda m, r: StreamingDiLoCo(m, r, period=6, fragments=3, overlap=3, **OUTER),
    "noloco": lambda m, r: NoLoCo(m, r, period=4),
    "after all-reduce": lambda m, r: DiLoCo(m, r, period=4, start_updates=12, **OUTER),
}


def resumes(rank, world):
    """A run stopped at any update ends in the same weights bit for bit; so does one that is evaluated there."""
    for name, make in COMPRESSED.items():
        if name == "noloco" and world % 2:
            continue
        whole = Run(rank, world, make).go(0, 30)
        for stop in (10, 12, 14, 15):
            run = Run(rank, world, make).go(0, stop)
            states, full = run.state()
            assert np.array_equal(run.go(stop, 30).value(), whole.value()), f"{name}: a save changed the run"
            resumed = Run(rank, world, make).load(states, full).go(stop, 30)
            assert np.array_equal(resumed.value(), whole.value()), f"{name}: resumed at {stop}"
            assert resumed.comm.metrics()["sent_bytes"] == run.comm.metrics()["sent_bytes"]


def elastic(rank, world):
    """One worker fewer, or one more: all go on from the outer state, with the mean of what the workers had."""
    for name, make in COMPRESSED.items():
        if name == "noloco":
            continue
        run = Run(rank, world, make).go(0, 14)
        states, full = run.state()
        with run.comm.averaged_weights(run.optimizer):
            mean = run.value()
        for saved in (states[:-1], [*states, states[-1]]):
            other = Run(rank, world, make).load(saved, full)
            np.testing.assert_allclose(other.value(), mean, rtol=0, atol=1e-12)
            if "streaming" not in name:
                assert torch.equal(other.comm._outer[0].weights, states[0]["outer"][0][0])
            other.go(14, 30)
            everyone = [None] * world
            dist.all_gather_object(everyone, other.value())
            assert all(np.isfinite(v).all() for v in everyone)
            if name == "diloco":  # 16 more updates end with an exchange
                other.go(30, 32)
                dist.all_gather_object(everyone, other.value())
                assert all(np.array_equal(everyone[0], v) for v in everyone)
    run = Run(rank, world, COMPRESSED["diloco"]).go(0, 4)
    states, _ = run.state()
    states[0]["outer"] = [tuple(t[:-1] for t in states[0]["outer"][0])]
    with pytest.raises(CheckpointError, match="the outer weights have another size than the model's"):
        run.comm.load_state_dicts(states)


def groups(rank, world):
    """Two workers that share every gradient are one of half as many, with both's samples."""
    run = Run(rank, world, lambda m, r: DiLoCo(m, r, period=4, group_size=2, **OUTER))
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=LR, momentum=MOMENTUM)
    pairs = [(i, i + 1) for i in range(0, world, 2)]

    def gradients(X):
        return np.stack([np.mean([run.A[i] @ (X[:, n] - run.C[:, i]) for i in pair], axis=0) for n, pair in enumerate(pairs)], axis=1)

    X = np.tile(run.start[:, None], len(pairs))
    expected = diloco(X, gradients, LR, MOMENTUM, UPDATES, period=4, **OUTER)
    run.rank = rank // 2  # the column of the reference
    run.go(0, UPDATES, expected)


def compressed(rank, world):
    """Half precision rounds; the error of top-k comes later; both send less."""
    ends, sent = {}, {}
    for name, make in (
        ("all", None),
        ("half", HalfPrecision),
        ("top-k", lambda: TopK(0.34)),
        ("8 bits", lambda: Quantized("int8", block=2)),
        ("4 bits", lambda: Quantized("int4", block=2)),
    ):
        run = Run(rank, world, lambda m, r, c=make: DiLoCo(m, r, period=4, compressor=c and c(), **OUTER), momentum=0.0).go(0, 200)
        ends[name], sent[name] = run.value(), run.comm.metrics()["sent_bytes"]
    np.testing.assert_allclose(ends["half"], ends["all"], rtol=0, atol=2e-2)
    assert not np.array_equal(ends["half"], ends["all"])
    assert np.linalg.norm(ends["top-k"] - ends["all"]) < 0.2 * np.linalg.norm(ends["all"] - run.start)
    assert sent["all"] == 50 * 2 * (world - 1) / world * DIMENSION * 8
    np.testing.assert_allclose(ends["8 bits"], ends["all"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(ends["4 bits"], ends["all"], rtol=0, atol=2e-2)
    assert sent["half"] < sent["all"]


def refusals(rank, world):
    model, ranks = Point(torch.zeros(DIMENSION)), Ranks(rank, world)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UserError, match="after_step without before_step"):
        DiLoCo(model, ranks, period=1).after_step(optimizer, 1)
    with pytest.raises(UserError, match="after_step without before_step"):
        StreamingDiLoCo(model, ranks, period=2).after_step(optimizer, 1)
    with pytest.raises(UserError, match="after_step without before_step"):
        NoLoCo(model, ranks, period=1).after_step(optimizer, 1)
    with pytest.raises(UserError, match=f"group_size = {world + 1}: must divide the {world} workers"):
        DiLoCo(model, ranks, group_size=world + 1)


def lost_partner(rank, world):
    """The last worker dies; its partners go on with their own displacement, and all others as before."""
    comm = None

    def make(model, ranks):
        nonlocal comm
        comm = NoLoCo(model, ranks, period=2, tolerant=True)
        return comm

    run = Run(rank, world, make, like_all=True, momentum=0.0).go(0, 4)
    if rank == world - 1:
        os._exit(0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run.go(4, 300)
    print(*(str(s.message) for s in said))
    best = run.own[1].numpy()
    assert np.linalg.norm(run.value() - best) < 0.05 * np.linalg.norm(run.start - best)


if __name__ == "__main__":
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=rank, world_size=world)
    globals()[sys.argv[1]](rank, world, *sys.argv[2:])
    meet(world - (sys.argv[1] == "lost_partner"))
    leave()
