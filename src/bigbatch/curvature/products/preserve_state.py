"""A model and all random states left as they were found, whatever a pass does and however it ends."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """What every module holds (its mode, and what its `forward` notes down) and all random states are as before afterwards.

    The values of parameters and buffers are not copied: passes are made on stand-ins (`torch.func.functional_call`).
    """
    modes = [(m, m.training) for m in model.modules()]
    held = [(vars(m), dict(vars(m))) for m in model.modules()]
    inner = [value for _, before in held for value in before.values() if type(value) in (dict, list)]  # such as the weights of an RNN
    held += [(value, value.copy()) for value in inner]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=_cuda_devices(model)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for now, before in held:
            _restore(now, before)
        for m, mode in modes:
            m.training = mode


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, also of modules that hold tensors which their last forward pass computed, as `torch.nn.utils.weight_norm`'s do."""
    with preserve_state(model):
        for m in model.modules():
            computed = {name: value for name, value in vars(m).items() if isinstance(value, torch.Tensor) and not value.is_leaf}
            vars(m).update({name: value.detach() for name, value in computed.items()})
        return copy.deepcopy(model)


@contextmanager
def drawing_from(seed: int, model: nn.Module) -> Iterator[None]:
    """Torch's random numbers start from a seed inside, and go on afterwards as if nothing had been drawn."""
    devices = _cuda_devices(model)
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _restore(now: Any, before: Any) -> None:
    if isinstance(now, list):
        now[:] = before
        return
    for name in now.keys() - before.keys():
        del now[name]
    now.update(before)


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    return sorted({t.device for t in (*model.parameters(), *model.buffers()) if t.is_cuda}, key=str)
