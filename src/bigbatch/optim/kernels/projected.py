"""The kernels of AdamP and SGDP: moments with the sums over rows, the decision for each tensor, and the step, which makes p again."""

import math
from typing import Any

import torch
from torch import Tensor

from bigbatch.core.hardware.kernels import OPTIONS
from bigbatch.core.tensors.sharding import sharded_axes
from bigbatch.optim.adamp import decayed_fraction as adam_decay
from bigbatch.optim.base import Rate
from bigbatch.optim.batches import Batch
from bigbatch.optim.kernels.common import bias_corrections, compiled_for
from bigbatch.optim.kernels.decide import decide, sum_rows
from bigbatch.optim.kernels.row_moments import moments
from bigbatch.optim.kernels.row_step import step
from bigbatch.optim.kernels.tables import ROWS_IN_BLOCK, WIDTHS, Table, on_device, table_of
from bigbatch.optim.sgdp import decayed_fraction as sgd_decay


def update_adamp(group: dict[str, Any], batch: Batch) -> bool:
    """One update of AdamP; False if it can't be made here: tensors in shards, or addresses that can't be sent to the device now."""
    table = _table(batch, ("exp_avg", "exp_avg_sq", "step"))
    if table is None:
        return False
    b1, b2 = group["betas"]
    bias = bias_corrections(group["betas"], table.addresses)
    flags = {"ADAM": True, "NESTEROV": False, "MAXIMIZE": bool(group["maximize"])}
    decay = adam_decay(group["lr"], group["weight_decay"])
    _update(group, batch, table, bias, (0.0, 1 - b1, b2, 1 - b2), flags, decay)
    return True


def update_sgdp(group: dict[str, Any], batch: Batch) -> bool:
    """One update of SGDP; False if it can't be made here: tensors in shards, or addresses that can't be sent to the device now."""
    table = _table(batch, ("momentum_buffer",))
    if table is None:
        return False
    m = group["momentum"]
    flags = {"ADAM": False, "NESTEROV": bool(group["nesterov"]), "MAXIMIZE": bool(group["maximize"])}
    unused = torch.empty(len(batch.params), dtype=torch.float32, device=batch.params[0].device)
    decay = sgd_decay(group["lr"], group["weight_decay"], m)
    _update(group, batch, table, (unused, unused), (m, 1 - group["dampening"], 0.0, 0.0), flags, decay)
    return True


def _table(batch: Batch, names: tuple[str, ...]) -> Table | None:
    if sharded_axes(batch.where):
        return None
    if "shapes" not in batch.memo:
        batch.memo["shapes"] = tuple(
            (w.size(0), w.numel() // max(w.size(0), 1), True) if w.ndim > 1 else (1, w.numel(), False) for w in batch.params
        )
    return table_of(batch, names, shapes=batch.memo["shapes"])


def _update(
    group: dict[str, Any],
    batch: Batch,
    table: Table,
    bias: tuple[Tensor, Tensor],
    numbers: tuple[float, float, float, float],
    flags: dict[str, bool],
    decay: Rate,
) -> None:
    cut, tensors, device = table.cut, len(batch.params), batch.params[0].device
    blocks, eps = cut.matrices, float(group["eps"])
    floor = max(eps, math.ulp(0.0))
    tables = (table.addresses, cut.owner, cut.first, cut.shape, tensors, cut.num)
    types = {**compiled_for(batch), **flags, "BLOCK": WIDTHS[-1]}
    lr, decays = on_device(group["lr"], device), on_device(decay, device)

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    partial, found, keep = empty(4, cut.partials), empty(5, blocks.num), empty(tensors)
    sums = torch.zeros(2, cut.rows, dtype=torch.float32, device=device)
    by_row = torch.empty(tensors, dtype=torch.int32, device=device)
    moments[(cut.num,)](*tables, partial, cut.partials, *bias, *map(float, numbers), eps, **types)
    if blocks.num:
        places = (blocks.owner, blocks.first, cut.shape, tensors, partial, cut.partials)
        sum_rows[(blocks.num,)](*places, sums, cut.rows, found, blocks.num, floor, ROWS=ROWS_IN_BLOCK, STEP=32, **OPTIONS)
    settings = (float(group["delta"]), float(group["wd_ratio"]), floor, eps)
    decide[(tensors,)](blocks.first, cut.shape, tensors, found, blocks.num, by_row, keep, lr, decays, *settings, BLOCK=512, **OPTIONS)
    step[(cut.num,)](*tables, sums, cut.rows, by_row, keep, lr, *bias, float(numbers[0]), eps, **types)
