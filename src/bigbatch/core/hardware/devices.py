"""Where a process computes: which device, its name, its memory and its random numbers.

torch's word for a GPU of any make is accelerator. Choosing a device does not initialise CUDA, where NVML can be asked (see
`bigbatch.comm.launch.launcher`).
"""

import os
import socket
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from bigbatch.core.checks import UserError
from bigbatch.core.environment import DEVICE, read_variable

CPU = torch.device("cpu")


def choose_device(asked: str | torch.device | None = None, *, local_rank: int | None = None) -> torch.device:
    """The device of this process.

    Args:
        asked: "cpu", "cuda", "cuda:1" or the like. None takes what BIGBATCH_DEVICE says, else a CUDA GPU if there is one, else the CPU.
        local_rank: Number of this worker on its machine, which decides its GPU where no number is asked for; LOCAL_RANK, or 0, if left out.

    Raises:
        UserError: If there is no such device here; names those that are.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    rank = read_variable("LOCAL_RANK", 0) if local_rank is None else local_rank
    if (asked := asked or read_variable(DEVICE)) is None:
        count = num_devices("cuda")
        return torch.device("cuda", rank % count) if count else CPU
    try:
        place = torch.device(asked)
    except RuntimeError:
        raise UserError(f"device {asked}: is not the name of a device; choose among {_here()}") from None
    if place.type == "cpu":
        return CPU
    if place.type == "mps":
        raise UserError(f"device {asked}: has no float64, in which losses are added up; choose among {_here()}")
    count = num_devices(place.type)
    if (place.index or 0) >= count:
        raise UserError(f"device {asked}: is not here; choose among {_here()}")
    return place if place.index is not None else torch.device(place.type, rank % count)


def num_devices(kind: str) -> int:
    """How many devices of a type there are, such as "cuda"; 0 for a type without devices of its own ("meta").

    >>> num_devices("cpu"), num_devices("meta")
    (1, 0)
    """
    module: Any = getattr(torch, kind, None)
    return int(module.device_count()) if hasattr(module, "device_count") and module.is_available() else 0


def current(device: torch.device) -> AbstractContextManager[object]:
    """Within, a device is torch's current one, which is meant where none is named; nothing changes for the CPU."""
    return nullcontext() if device.type == "cpu" else torch.accelerator.device_index(device.index)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was asked to."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def name_of(device: torch.device) -> str | None:
    """What a GPU calls itself; None for the CPU."""
    module = torch.get_device_module(device)
    return str(module.get_device_name(device)) if device.type != "cpu" and hasattr(module, "get_device_name") else None


def identity_of(device: torch.device) -> str:
    """A text that is the same for two workers if they compute on the same GPU, whatever numbers they know it by; empty for the CPU."""
    if device.type == "cpu":
        return ""
    properties = torch.get_device_module(device).get_device_properties(device)
    by_number = f"{device} of {os.environ.get('CUDA_VISIBLE_DEVICES', 'all')}"
    return f"{socket.gethostname()} {getattr(properties, 'uuid', by_number)}"


def free_bytes(device: torch.device) -> int | None:
    """Memory of a GPU that nobody has taken; None for the CPU, and where it is not told."""
    module = torch.get_device_module(device)
    return int(module.mem_get_info(device)[0]) if device.type != "cpu" and hasattr(module, "mem_get_info") else None


def random_states(device: torch.device) -> list[Tensor]:
    """State of a GPU's generator, as a list of one; empty for the CPU, whose generator is torch's own."""
    return [] if device.type == "cpu" else [torch.get_device_module(device).get_rng_state(device)]


def restore_random_state(device: torch.device, states: list[Tensor]) -> None:
    """Give a GPU's generator a state that was saved.

    Args:
        device: For the CPU, nothing is done.
        states: As `random_states` has it; of several, as earlier versions saved them, that of the same number is taken. None leaves the
            generator as it is seeded.
    """
    if device.type != "cpu" and states:
        state = states[device.index] if device.index < len(states) else states[0]
        torch.get_device_module(device).set_rng_state(state.cpu(), device)


def forked_random(device: torch.device) -> AbstractContextManager[object]:
    """Within, random numbers may be drawn; afterwards the generators of the CPU and of this device are as before."""
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device.index], device_type=device.type)


def _here() -> str:
    kinds = [kind for kind in ("cuda", "xpu") if num_devices(kind)]
    return ", ".join(["cpu", *(f"{kind}:{i}" for kind in kinds for i in range(num_devices(kind)))])
