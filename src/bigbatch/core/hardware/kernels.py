"""Whether a device can run Triton kernels: each kind is tried once, and where one fails other operations of torch take its place."""

import importlib.util
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

DEVICES = {"cuda"}
"""Types of devices that kernels are for; the tests add others."""

OPTIONS = {"enable_fp_fusion": True}
"""Of Triton's compiler: its default changes between versions, with a warning in some."""

_tried: set[Hashable] = set()
_failed: set[tuple[str, torch.device]] = set()
_off = False


@contextmanager
def without_kernels() -> Iterator[None]:
    """Use no kernels of this library while this lasts: to compare, or to look for a fault."""
    global _off
    before, _off = _off, True
    try:
        yield
    finally:
        _off = before


def kernels_work(name: str, kind: Hashable, device: torch.device, try_out: Callable[[], object], *, instead: str) -> bool:
    """Whether kernels can be used: Triton is there, and they have worked, now or before.

    Never under `torch.compile`. While a CUDA graph is captured only what was tried before, as in the warm-up that torch asks for.

    Args:
        name: Of the kernels, for the warning; if one kind fails, none of this name is used on the device any more.
        kind: What is compiled by itself: types, flags.
        device: Of the tensors.
        try_out: Runs the kernels on small tensors; raises whatever exception if they fail or are wrong.
        instead: What the caller does without them, for the warning.
    """
    if _off or device.type not in DEVICES or torch.compiler.is_compiling() or not has_triton() or (name, device) in _failed:
        return False
    if (name, kind, device) in _tried:
        return True
    if is_capturing(device):
        return False  # nothing can be compiled now
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # what the compiler warns of is no failure
            try_out()
    except Exception as error:  # the compiler, the driver, a missing C compiler: each raises kinds of its own
        _failed.add((name, device))
        why = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        warnings.warn(f"the kernels of {name} do not work on {device} ({why}): {instead}", stacklevel=2)
        return False
    _tried.add((name, kind, device))
    return True


@cache
def has_triton() -> bool:
    """Whether triton is installed; torch's CUDA builds for Linux bring it."""
    return importlib.util.find_spec("triton") is not None


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
