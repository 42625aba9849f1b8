"""Triton's kernels compiled down to machine code for two GPUs, which needs none; run by test_kernels.py.

Steps are made on a CPU with a driver that only says which GPU it would be: kernels are compiled as a launch would, and not launched.
"""

import re

import pytest
import torch
from tests.kernel_files import compiled_only

from bigbatch.core.hardware import kernels as core_kernels
from bigbatch.optim import LAMB, LARS, SGDP, AdamP

CASES = [
    ("LARS", 80, torch.float32, lambda ps: LARS(ps, lr=0.5, weight_decay=0.01, nesterov=True, lr_in_momentum=False)),
    ("LARS", 90, torch.bfloat16, lambda ps: LARS(ps, lr=0.5, adapt=False, maximize=True)),
    ("LAMB", 90, torch.float32, lambda ps: LAMB(ps, weight_decay=0.01)),
    ("LAMB", 80, torch.float16, lambda ps: LAMB(ps, bias_correction=False)),
    ("AdamP", 80, torch.float32, lambda ps: AdamP(ps, weight_decay=0.01)),
    ("SGDP", 90, torch.bfloat16, lambda ps: SGDP(ps, momentum=0.9, nesterov=True, maximize=True)),
]


@pytest.mark.parametrize(("method", "capability", "dtype", "make"), CASES)
def test_kernels_compile(method, capability, dtype, make, monkeypatch):
    monkeypatch.setattr(core_kernels, "DEVICES", {"cpu"})
    monkeypatch.setattr(core_kernels, "_tried", set())
    monkeypatch.setattr(core_kernels, "_failed", set())
    with compiled_only(capability) as compiled:
        params = [torch.ones(shape, dtype=dtype, requires_grad=True) for shape in ((6, 4), (5,), ())]
        optimizer = make(params)
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert len(core_kernels._tried) == 1
        seen = {id(kernel) for *_, kernel in compiled}
        for group in optimizer.param_groups:  # another rate, another number of tensors: nothing is compiled anew
            group["lr"] = 0.123
        params[2].grad = None
        optimizer.step()
        optimizer.param_groups[0]["lr"] = torch.tensor(0.5)
        optimizer.step()
        assert {id(kernel) for *_, kernel in compiled} == seen
    for name, options, kernel in compiled:
        assert kernel.asm["cubin"]
        assert not re.search(r"\b(atom|red)\.global", kernel.asm["ptx"]), name  # sums are added in one order
        if options.get("ALIGNED") and name in ("_sq_norms", "_moments", "_step"):
            assert "ld.global.v4" in kernel.asm["ptx"], name  # 16 bytes at a time
