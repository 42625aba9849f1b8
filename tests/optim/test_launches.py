"""Small networks on a GPU are bound by launches: what a step over ResNet-50's 161 tensors launches, by kernels and without."""

import importlib.util

import pytest
import torch
from benchmarks.optimizer_step import resnet50
from tests.optim import test_contract as contract
from tests.optim.launches import Launches, multi_tensor_launches

from bigbatch.core.hardware import kernels as core_kernels
from bigbatch.optim import LAMB, LARS, SGDP, AdamP

SETTINGS = {"weight_decay": 1e-4}
CASES = [
    (LARS, 4, 203),
    (LAMB, 5, 549),
    (AdamP, 8, 1073),
    (SGDP, 7, 719),
]
"""Launches of a step by kernels (everything together), and on the foreach path; torch's SGD has 9."""
COPIES = 1
"""To send addresses that have changed; it is no operation that a dispatch mode sees."""


def launches_of(make, shapes=((6, 4), (5,), (4, 3, 3, 3), (70, 3))):
    """Of the second step, since the first makes state and constants."""
    params = [torch.empty(s, device="meta").requires_grad_() for s in shapes]
    optimizer = make(params)
    for p in params:
        p.grad = torch.empty_like(p)
    optimizer.step()
    with Launches() as launches:
        optimizer.step()
    return launches


@pytest.mark.parametrize(("cls", "kernels", "foreach"), CASES)
def test_launches_of_the_foreach_path(cls, kernels, foreach):
    assert launches_of(lambda ps: cls(ps, **SETTINGS), resnet50()).total <= foreach


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed: its wheels are for Linux on x86_64")
@pytest.mark.parametrize(("cls", "kernels", "foreach"), CASES)
def test_launches_by_kernels(cls, kernels, foreach, monkeypatch):
    from triton.runtime.jit import JITFunction

    launched = []
    monkeypatch.setattr(JITFunction, "run", lambda self, *args, **kwargs: launched.append(self))
    monkeypatch.setattr(core_kernels, "DEVICES", {"meta"})
    monkeypatch.setattr(core_kernels, "_tried", set())
    monkeypatch.setattr(core_kernels, "_failed", set())
    launches = launches_of(lambda ps: cls(ps, **SETTINGS), resnet50())
    own = len(launched) // 4  # two trials, two steps
    assert own in (3, 4, 5)
    assert launches.total + own == kernels
    assert kernels + COPIES <= 40


def test_the_count_of_torchs_own_sgd():
    """Five operations, three of them on two lists of more elements than one launch takes."""
    launches = launches_of(lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=1e-4, foreach=True), resnet50())
    assert {name: n for name, n in launches.by_name.items() if n} == {"_foreach_add": 4, "_foreach_mul_": 3, "_foreach_add_": 6}


def test_the_count_knows_the_slow_route():
    tensors, factors = [torch.empty(3, device="meta") for _ in range(7)], [torch.empty((), device="meta") for _ in range(7)]
    with Launches() as launches:
        torch._foreach_mul_(tensors, 2.0)
        assert launches.total == 1
        torch._foreach_mul_(tensors, factors)  # one for each
        assert launches.total == 8
        torch._foreach_add_(tensors, [t.bfloat16() for t in tensors])  # seven casts, and one for each
        assert launches.total == 22
    assert multi_tensor_launches([1] * 64, 2) == 1
    assert multi_tensor_launches([1] * 65, 2) == 2
    assert multi_tensor_launches([320 * 65536 + 1], 1) == 2


@pytest.mark.parametrize("make", contract.MAKERS.values(), ids=contract.MAKERS.keys())
def test_nothing_is_added_by_atomics(make):
    """They add in any order on CUDA, and a run that is resumed would not have the bits of one that is not."""
    launches = launches_of(make)
    assert launches.total > 0
    assert launches.atomic == set()


def test_atomics_are_seen():
    t, at = torch.zeros(3, device="meta"), torch.zeros(3, device="meta", dtype=torch.int64)
    with Launches() as launches:
        t.index_add_(0, at, t)
        t.scatter_reduce_(0, at, t, "amax")
        t.index_put_((at,), t)
    assert launches.atomic == {"index_add_", "scatter_reduce_"}
    with Launches() as launches:
        t.index_put_((at,), t, accumulate=True)
    assert launches.atomic == {"index_put_"}
