"""Triton's kernels compiled down to machine code for two GPUs, which needs none; run by test_kernels.py.

Steps are made on a CPU with a driver that only says which GPU it would be: kernels are compiled as a launch would, and not launched.
"""

import re

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from bigbatch.optim import LAMB, LARS, SGDP, AdamP
from bigbatch.optim.kernels import launch


class Named:
    """A driver of a GPU that isn't there."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device=0):
        return 0


CASES = [
    ("LARS", 80, torch.float32, lambda ps: LARS(ps, lr=0.5, weight_decay=0.01, nesterov=True, lr_in_momentum=False)),
    ("LARS", 90, torch.bfloat16, lambda ps: LARS(ps, lr=0.5, adapt=False, maximize=True)),
    ("LAMB", 90, torch.float32, lambda ps: LAMB(ps, weight_decay=0.01)),
    ("LAMB", 80, torch.float16, lambda ps: LAMB(ps, bias_correction=False)),
    ("AdamP", 80, torch.float32, lambda ps: AdamP(ps, weight_decay=0.01)),
    ("SGDP", 90, torch.bfloat16, lambda ps: SGDP(ps, momentum=0.9, nesterov=True, maximize=True)),
]


@pytest.mark.parametrize(("name", "capability", "dtype", "make"), CASES)
def test_kernels_compile(name, capability, dtype, make, monkeypatch):
    compiled = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        compiled.append((self.fn.__name__, kwargs.get("ALIGNED"), run(self, *args, grid=grid, warmup=True, **kwargs)))

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(launch, "_DEVICES", {"cpu"})
    monkeypatch.setattr(launch, "_works", {})
    driver.set_active(Named(capability))
    params = [torch.ones(shape, dtype=dtype, requires_grad=True) for shape in ((6, 4), (5,), ())]
    optimizer = make(params)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert list(launch._works.values()) == [True]
    seen = {id(kernel) for *_, kernel in compiled}
    for group in optimizer.param_groups:  # another rate, another number of tensors: nothing is compiled anew
        group["lr"] = 0.123
    params[2].grad = None
    optimizer.step()
    optimizer.param_groups[0]["lr"] = torch.tensor(0.5)
    optimizer.step()
    assert {id(kernel) for *_, kernel in compiled} == seen
    for which, aligned, kernel in compiled:
        assert kernel.asm["cubin"]
        assert not re.search(r"\b(atom|red)\.global", kernel.asm["ptx"]), which  # sums are added in one order
        if aligned and which in ("_sq_norms", "_moments", "_step"):
            assert "ld.global.v4" in kernel.asm["ptx"], which  # 16 bytes at a time
