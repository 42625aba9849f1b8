"""How an update is cut into forward passes, and which size is the fastest here.

The cut never changes the update: losses are summed and divided once, and normalisation groups are never cut in two.
"""

import contextlib
import copy
import hashlib
import itertools
import json
import platform
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from bigbatch.core.checks import InputError, OutputError
from bigbatch.core.hardware.devices import CPU, forked_random, name_of, synchronize
from bigbatch.core.storage.reading import read_json
from bigbatch.core.storage.writing import write_atomically
from bigbatch.layers.ghost_batch_norm import ghost_groups
from bigbatch.tasks.data.locate import cache_folder

SMALLEST, LARGEST = 16, 8192
"""Candidates are the smallest (or one normalisation group) times powers of two, up to the largest or the update itself."""


def micro_batches(num_samples: int, micro_batch: int, ghost_batch: int | Literal["global"] | None) -> list[int]:
    """Sizes of the forward passes of one update.

    Args:
        num_samples: Samples in the update.
        micro_batch: Most samples in one pass; exceeded only where one normalisation group is larger.
        ghost_batch: Samples in one normalisation group, "global" for one group, None for a model without batch norm.

    Returns:
        Sizes that sum to `num_samples`; only the last may be smaller than the others.

    >>> micro_batches(600, 256, None), micro_batches(600, 256, 128), micro_batches(600, 100, 128)
    ([256, 256, 88], [256, 256, 88], [128, 128, 128, 128, 88])
    """
    if ghost_batch == "global":
        return [num_samples]
    groups = ghost_groups(num_samples, ghost_batch) if ghost_batch is not None else None
    if groups is None:
        full, rest = divmod(num_samples, micro_batch)
        return [micro_batch] * full + ([rest] if rest else [])
    sizes: list[int] = []
    for group in groups:
        if sizes and sizes[-1] + group <= micro_batch:
            sizes[-1] += group
        else:
            sizes.append(group)
    return sizes


def fastest_micro_batch(
    forward_backward: Callable[[nn.Module, int], None],
    model: nn.Module,
    *,
    global_batch: int,
    ghost_batch: int | None,
    key: str,
    device: torch.device = CPU,
) -> int:
    """Measure candidate sizes and return the fastest that fits; remembered per machine, kind of GPU and `key`.

    Larger is not faster everywhere: a CPU's caches favour pieces of a few hundred samples.

    Args:
        forward_backward: Runs one pass of a given number of samples on a given copy of the model.
        model: Left untouched, as are the random states.
        global_batch: No candidate is larger.
        ghost_batch: Candidates are this times powers of two.
        key: Names the work, such as the task and its precision; the machine and its GPU are added here.
        device: Of the model; waited for before each look at the clock.

    Returns:
        Samples in one forward pass, at most `global_batch`.
    """
    unit, most = ghost_batch or SMALLEST, min(global_batch, LARGEST)
    candidates = [unit << i for i in range(20) if unit << i <= most] or [min(unit, global_batch)]
    if len(candidates) == 1:
        return candidates[0]
    machine = (
        f"{platform.node()} {platform.processor()} {torch.__version__} {torch.get_num_threads()} threads {device.type} {name_of(device)}"
    )
    name = hashlib.sha256(f"3|{machine}|{key}|{candidates}".encode()).hexdigest()[:24]
    path = cache_folder() / "micro_batch" / f"{name}.json"
    with contextlib.suppress(InputError):  # not measured yet, or damaged
        if (known := read_json(path, "").get("micro_batch")) in candidates:
            return int(known)
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()  # a GPU computes slower with weights that lie apart, as those of a copy do
    seconds = _measure(forward_backward, copied, candidates, device)
    best = min(seconds, key=lambda size: seconds[size])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"micro_batch": best, "seconds_per_sample": seconds, "key": key}).encode())
    except (OSError, OutputError):
        pass  # a cache that can't be written costs a second next time, nothing else
    return best


def _measure(
    forward_backward: Callable[[nn.Module, int], None], model: nn.Module, candidates: list[int], device: torch.device
) -> dict[int, float]:
    """Least seconds per sample of each candidate, up to where they fail or two in a row are much slower than the best.

    The least and not the median, and two and not one: other programs make passes slower, never faster.
    """
    per_sample: dict[int, float] = {}
    with forked_random(device):
        for size in candidates:
            try:
                times = []
                for trial in itertools.count():
                    begin = time.perf_counter()
                    forward_backward(model, size)
                    synchronize(device)
                    times.append(time.perf_counter() - begin)
                    if trial >= 2 and (trial >= 12 or sum(times) > 0.15):
                        break
            except torch.OutOfMemoryError:
                break
            per_sample[size] = min(times[1:]) / size
            if all(seconds > 1.5 * min(per_sample.values()) for seconds in list(per_sample.values())[-2:]):
                break
    return per_sample
