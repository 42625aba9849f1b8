"""Modules of Triton kernels: imported where there is CUDA and a compiler, and tried once on a device before they are relied on."""

import importlib
import warnings
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch


def compiled_kernels(module: str, device: torch.device) -> Any:
    """A module of kernels that runs on a device, or None where the caller has to do without.

    The first call for a device compiles them and compares their results with those of the CPU, on small inputs.

    Args:
        module: Full name. It has `try_out(device)`, which raises an exception if the kernels fail or are wrong.
        device: Of the tensors.
    """
    if device.type != "cuda" or find_spec("triton") is None:
        return None
    if device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    if torch.cuda.is_current_stream_capturing() and (module, device) not in _TRIED:
        return None  # compiling would break the capture; a warm-up before it, as torch asks for, has tried them already
    _TRIED.add((module, device))
    return _try_once(module, device)


_TRIED: set[tuple[str, torch.device]] = set()


@lru_cache
def _try_once(module: str, device: torch.device) -> Any:
    try:
        kernels = importlib.import_module(module)
        kernels.try_out(device)
    except Exception as error:  # a compiler that lacks its tools, or of another version: what is slower still works
        first_line = str(error).strip().partition("\n")[0]
        warnings.warn(
            f"{module} can't be used on {device}, and slower operations take its place: {type(error).__name__}: {first_line}",
            stacklevel=4,
        )
        return None
    return kernels
