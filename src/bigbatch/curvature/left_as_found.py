"""A model, its random numbers and torch's, left as they were found, whatever a pass does and however it ends."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Attributes of every module (its mode among them) and all random states are as before afterwards.

    Parameters and buffers are not copied: a pass is to be made on stand-ins (`torch.func.functional_call`).
    """
    found = [(vars(m), dict(vars(m))) for m in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=_cuda_devices(model)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for now, before in found:
            for name in now.keys() - before.keys():
                del now[name]
            now.update(before)


@contextmanager
def drawing_from(seed: int, model: nn.Module) -> Iterator[None]:
    """Torch's random numbers start from a seed inside, and go on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        torch.manual_seed(seed)
        yield


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Only kernels whose gradients have gradients: attention by matrix products, recurrent layers step by step."""
    with ExitStack() as kernels:
        kernels.enter_context(sdpa_kernel(SDPBackend.MATH))
        fast = torch.backends.mha.get_fastpath_enabled()
        kernels.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        if any(isinstance(m, nn.RNNBase) for m in model.modules()):
            kernels.enter_context(torch.backends.cudnn.flags(enabled=False))
            kernels.enter_context(torch.backends.mkldnn.flags(enabled=False))
        yield


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    return sorted({t.device for t in (*model.parameters(), *model.buffers()) if t.is_cuda}, key=str)
