"""The walk over weights that AdamP and SGDP share: make the update, decide on the projection, decay and step in one pass."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bigbatch.core.tensors.multi_tensor import Piece, block_limit, blocks, flat, runs, take
from bigbatch.core.tensors.sharding import sharded_axes
from bigbatch.optim.base import BaseOptimizer, check_rate, widened
from bigbatch.optim.batches import Batch
from bigbatch.optim.projection import RowSums, radial, row_sums

Directions = Callable[[range, tuple[Piece, ...]], list[Tensor]]
"""Updates p of the pieces of a block of a run of tensors, as fresh or stored tensors that nobody writes."""


class ProjectedOptimizer(BaseOptimizer):
    """An optimizer whose updates are projected: its groups have `delta` and `wd_ratio`."""

    def check_group(self, group: dict[str, Any]) -> None:
        """Refuse impossible settings of a group."""
        super().check_group(group)
        check_rate("delta", group["delta"])
        check_rate("wd_ratio", group["wd_ratio"])


def projected_step(
    group: dict[str, Any], batch: Batch, directions: Directions, *, decay: float | Tensor, stored: list[Tensor] | None = None
) -> None:
    """Decay every tensor of a batch, w <- w (1 - decay x ratio), and take lr times p without its radial part from it.

    Args:
        group: With `lr`, `delta`, `wd_ratio` and `eps`.
        batch: Its tensors.
        directions: What makes p; called once for each block, in order.
        decay: Fraction of the weights that decays in one update, before `wd_ratio`.
        stored: Where p is kept anyway (a momentum buffer), flat; None to keep it in a temporary.
    """
    weights, grads = [flat(w) for w in batch.params], [flat(g) for g in batch.grads]
    lengths = [max(whole.numel() // max(whole.size(0), 1), 1) if whole.ndim > 1 else 0 for whole in batch.wholes]
    counts = [w.size(0) if w.ndim > 1 else 1 for w in batch.params]
    held = [w.numel() // max(count, 1) for w, count in zip(batch.params, counts, strict=True)]
    limit, sharded = block_limit(weights[0].device), bool(sharded_axes(batch.where))
    for run in runs(tuple(w.numel() for w in weights), 0 if sharded else limit):
        ws, gs = (ts[run.start : run.stop] for ts in (weights, grads))
        row, count = held[run.start : run.stop], counts[run.start : run.stop]
        matrices = [i for i in range(len(run)) if lengths[run.start + i]]
        near = blocks(tuple(w.numel() for w in ws), limit, tuple(row))
        kept = stored[run.start : run.stop] if stored is not None else None
        sums: list[RowSums] = []
        rowed: list[tuple[Tensor, Tensor]] = []
        fresh: list[list[Tensor]] = []
        for block in near:
            us = directions(run, block)
            if kept is None:
                fresh.append(us)
            for p, w, g, u in zip(block, take(ws, block), take(gs, block), us, strict=True):
                if lengths[run.start + p.number]:
                    shape = (count[p.number] if p.is_whole else w.numel() // row[p.number], row[p.number])
                    rowed.append((w.view(shape), u.view(shape)))
                    sums.append(row_sums(w.to(u.dtype).view(shape), g.to(u.dtype).view(shape)))
        keep: list[Any] = [1 - decay] * len(ws)
        if matrices:
            rows = [count[i] for i in matrices]
            found = radial(
                RowSums(*(torch.cat(parts) for parts in zip(*sums, strict=True))),
                partial(_dots, rowed),
                rows=rows,
                lengths=[lengths[run.start + i] for i in matrices],
                delta=group["delta"],
                eps=group["eps"],
                where=batch.where,
            )
            if found.coefficients is not None:
                share = torch.ones_like(found.projected, dtype=found.coefficients.dtype).masked_fill(found.projected, group["wd_ratio"])
                left = 1 - decay * share
                radials = (found.coefficients * group["lr"]).split(rows)
                for i, c, factor in zip(matrices, radials, left.unbind(), strict=True):
                    keep[i] = (c + factor).unsqueeze(1)
        for number, block in enumerate(near):
            us = take(kept, block) if kept is not None else fresh[number]
            _step(take(ws, block), us, [_of_rows(keep[p.number], p, row[p.number]) for p in block], group["lr"])


def _dots(rowed: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.cat([torch.linalg.vecdot(w.to(u.dtype), u) for w, u in rowed])


def _of_rows(keep: Any, piece: Piece, length: int) -> Any:
    return keep if piece.is_whole or not isinstance(keep, Tensor) or keep.ndim == 0 else keep[piece.start // length : piece.stop // length]


def _step(weights: list[Tensor], updates: list[Tensor], keeps: list[Any], lr: float | Tensor) -> None:
    wide = widened(weights, updates[0].dtype)
    if any(isinstance(keep, Tensor) for keep in keeps):
        for w, keep in zip(wide, keeps, strict=True):
            if not w.numel():
                continue  # a rank that holds nothing of this tensor
            if isinstance(keep, Tensor) and keep.ndim:
                w.view(keep.size(0), -1).mul_(keep)
            elif isinstance(keep, Tensor) or keep != 1:
                w.mul_(keep)
    elif keeps[0] != 1:  # nothing is projected: one number for all
        torch._foreach_mul_(wide, keeps[0])
    if isinstance(lr, Tensor):
        torch._foreach_addcmul_(wide, updates, [-lr] * len(wide))
    else:
        torch._foreach_add_(wide, updates, alpha=-lr)
    if wide is not weights:
        torch._foreach_copy_(weights, wide)
