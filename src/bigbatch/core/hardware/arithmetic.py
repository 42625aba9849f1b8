"""What the last bits of a run depend on, beside its recipe.

A run repeats itself, and continues after a stop, bit for bit with the same of all that `arithmetic` names, the same number of workers and
the same micro-batch (which checkpoints keep). Libraries choose their kernels, and kernels the order in which they add up, by the kind of
processor and the number of threads. How often values are read, where memory is and how busy the machine is must not matter: see
`bigbatch.core.tensors.ordered_sum` and `bigbatch.core.tensors.alignment`. Something else, and a run continues to rounding.
"""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bigbatch.core.hardware.denormals import flushes_denormals
from bigbatch.core.hardware.devices import CPU, name_of

CPU_INFO = Path("/proc/cpuinfo")
SETTINGS = (
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
    "CUBLAS_WORKSPACE_CONFIG",
)
"""Environment variables by which libraries choose kernels, and numpy its threads; those of torch show in what it says itself."""


def arithmetic(device: torch.device = CPU) -> dict[str, Any]:
    """Versions, threads, processor, what it does with denormal numbers, GPU, and the variables of `SETTINGS` that are set; JSON values.

    Args:
        device: On which the run computes; only a GPU that it uses counts.

    >>> arithmetic()["num_threads"] == torch.get_num_threads()
    True
    """
    return {
        "torch": str(torch.__version__),
        "numpy": version("numpy"),
        "num_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "denormals": "flushed" if flushes_denormals() else "kept",
        "processor": _processor(),
        "gpu": name_of(device),
        **{name: os.environ[name] for name in SETTINGS if name in os.environ},
    }


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """What is not the same of two results of `arithmetic`, in words.

    >>> differences({"num_threads": 1, "MKL_CBWR": "AVX2"}, {"num_threads": 2})
    ['num_threads: 1 here, 2 there', 'MKL_CBWR: AVX2 here, not set there']
    """
    names = [*here, *(name for name in there if name not in here)]
    told = [(name, *("not set" if (value := facts.get(name)) is None else value for facts in (here, there))) for name in names]
    return [f"{name}: {mine} here, {theirs} there" for name, mine, theirs in told if mine != theirs]


def repeats(trials: int = 20, *, device: str = "cpu") -> bool:
    """Whether the gradient of a small network has the same bits every time, wherever its memory is: about 0.1 s."""
    chance = torch.Generator().manual_seed(0)
    shapes = ((5, 3, 3, 3), (7, 5 * 9 * 9), (1, 7))
    images = torch.randn(19, 3, 9, 9, generator=chance).to(device)
    weights = [torch.randn(shape, generator=chance).to(device).requires_grad_() for shape in shapes]

    def gradient() -> Tensor:
        kernel, wide, narrow = weights
        hidden = F.batch_norm(F.conv2d(images, kernel, padding=1), None, None, training=True).relu()
        output = F.linear(F.linear(hidden.flatten(1), wide).tanh(), narrow)
        return torch.cat([g.flatten() for g in torch.autograd.grad(output.square().mean(), weights)])

    first, between = gradient(), []
    for trial in range(trials):
        between.append(torch.empty(37 * trial + 1, device=device))  # so that memory is given out elsewhere
        if not torch.equal(gradient(), first):
            return False
    return True


def _processor() -> str:
    """The processor's name, as the system tells it; its architecture where it does not."""
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
