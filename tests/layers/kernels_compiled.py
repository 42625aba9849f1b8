"""Ghost batch norm's kernels compiled down to machine code for two GPUs, which needs none; run by test_kernels.py."""

import re

import pytest
import torch
from tests.kernel_files import compiled_only

from bigbatch.layers import group_kernels


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_kernels_compile(capability, dtype, channels_last):
    with compiled_only(capability) as compiled:
        for sizes, shape, affine in (([4, 4, 4], (3, 4, 4), True), ([32, 33], (64, 8, 8), False), ([2, 2], (1, 1, 1), True)):
            x = torch.randn(sum(sizes), *shape).to(dtype)
            x = x.to(memory_format=torch.channels_last) if channels_last else x
            weight, bias, mean, var = torch.rand(4, shape[0])
            _, statistics = group_kernels.forward(x, weight if affine else None, bias if affine else None, sizes, 1e-5)
            for momentum in (0.1, None, 1):
                group_kernels.update_running(mean, var, torch.tensor(3), momentum, statistics, sizes, shape[1] * shape[2])
            group_kernels.backward(x, x, weight if affine else None, statistics, sizes, of_input=True, of_parameters=True)
    assert {name for name, *_ in compiled} == {"sum_up", "normalise", "follow", "sum_up_gradient", "gradient"}
    for name, _, kernel in compiled:
        assert kernel.asm["cubin"]
        assert not re.search(r"\b(atom|red)\.global", kernel.asm["ptx"]), name  # sums are added in one order
