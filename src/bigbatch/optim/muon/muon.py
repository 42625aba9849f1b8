r"""Muon: momentum whose matrices are replaced by the nearest orthogonal ones, so that every direction moves by the same amount.

Paper:   Liu et al. 2025, Muon is Scalable for LLM Training, arXiv:2502.16982, Section 2 (the rule is Keller Jordan's, 2024).
Formula: for a matrix w of A x B,
             M <- m M + (1 - m) g,        Z = (1 - m) g + m M          (nesterov; else Z = M)
             O = NS(Z)                    five Newton-Schulz iterations X <- a X + (b XX' + c (XX')^2) X from X = Z / |Z|:
                                          every singular value goes to about 1
             w <- w (1 - eta lambda) - eta 0.2 sqrt(max(A, B)) O       the root mean square of a step is about 0.2 eta
         all else (groups with orthogonalise=False: biases, norms, embeddings, the head) by AdamW with its own rate.
Differs: convolutions are matrices of output channels x the rest. Weights that hold several matrices (LSTM and GRU gates, a fused q, k
         and v, experts) are orthogonalised one matrix at a time: group settings `matrices` and `layout`, see core/tensors/matrices.py.
         scale="original" is Jordan's sqrt(max(1, A/B)) in place of 0.2 sqrt(max(A, B)).
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import ParamsT

from bigbatch.core.checks import UserError, check_positive, unknown
from bigbatch.core.paper import Paper
from bigbatch.core.tensors.matrices import as_matrices, from_matrices, matrix_shape
from bigbatch.core.tensors.multi_tensor import block_limit, blocks, flat, take
from bigbatch.core.tensors.sharding import full_tensor_like, shard_like
from bigbatch.optim.adam import adam_directions, corrections
from bigbatch.optim.base import BaseOptimizer, Rate, buffers, subtract, widened
from bigbatch.optim.batches import Batch
from bigbatch.optim.muon.newton_schulz import SCALES, orthogonalise, step_scale

PAPER = Paper(
    method="Muon",
    title="Muon is Scalable for LLM Training",
    authors="Liu et al.",
    year=2025,
    arxiv="2502.16982",
    where="Section 2",
    study="studies/optimizers",
)

LARGEST_STACK = 2**17
"""Elements that are orthogonalised together on a CPU, where a longer batch of matrices gains nothing."""


class Muon(BaseOptimizer):
    """Orthogonalised momentum for matrices, AdamW for the rest; see the module's docstring for the rule.

    Args:
        params: Groups such as `muon_groups` builds; group settings are `orthogonalise`, `matrices` and `layout`.
        lr: eta.
        momentum: m of the matrices, in [0, 1).
        nesterov: Look one step of momentum ahead.
        weight_decay: lambda, decoupled, times the rate.
        betas: Of AdamW, for the rest.
        eps: Of AdamW.
        steps: Newton-Schulz iterations.
        scale: "matched_rms", or "original" for Jordan's.
        dtype: Type to orthogonalise in; None is bfloat16, and float64 for parameters of float64.
        orthogonalise: Whether a group is for matrices.
        matrices: Matrices in each parameter, all of one size.
        layout: How they lie in it, see bigbatch.core.tensors.matrices.
        process_group: Plain data parallel: ranks of this group share the orthogonalisations out and exchange the results. Gradients
            must be equal on all of them (as DistributedDataParallel leaves them).
        maximize: Climb instead of descend.

    Raises:
        UserError: If a setting is out of range or a parameter can't be used.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Rate = 0.02,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        steps: int = 5,
        scale: Literal["matched_rms", "original"] = "matched_rms",
        dtype: torch.dtype | None = None,
        orthogonalise: bool = True,
        matrices: int = 1,
        layout: str = "rows",
        process_group: dist.ProcessGroup | None = None,
        maximize: bool = False,
    ) -> None:
        self.process_group = process_group
        self.dtype = dtype
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "betas": betas,
            "eps": eps,
            "steps": steps,
            "scale": scale,
            "orthogonalise": orthogonalise,
            "matrices": matrices,
            "layout": layout,
            "maximize": maximize,
            **self.own_settings,
        }
        super().__init__(params, defaults)

    own_settings: Mapping[str, Any] = MappingProxyType({})  # of a subclass: settings of groups, and their defaults
    process_group: dist.ProcessGroup | None = None  # of a copy or a pickle: none, so that it does all of the work itself
    dtype: torch.dtype | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What torch keeps, and the type to orthogonalise in."""
        return {**super().__getstate__(), "dtype": self.dtype}

    def check_group(self, group: dict[str, Any]) -> None:
        """Refuse impossible settings of a group."""
        super().check_group(group)
        if group["scale"] not in SCALES:
            raise UserError(unknown("scale", group["scale"], SCALES))
        check_positive("steps", group["steps"])
        check_positive("matrices", group["matrices"])
        for p in group["params"] if group["orthogonalise"] else ():
            if p.ndim < 2:
                raise UserError(f"a parameter of shape {tuple(p.shape)}: has no matrix; put it into a group with orthogonalise=False")
            matrix_shape(p.shape, group["matrices"], group["layout"])

    def state_names_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Momentum for matrices, Adam's moments for the rest."""
        return ("momentum_buffer",) if group["orthogonalise"] else ("step", "exp_avg", "exp_avg_sq")

    def update(self, group: dict[str, Any], batch: Batch) -> None:
        """One update of tensors of one group."""
        (self._update_matrices if group["orthogonalise"] else _adamw)(group, batch)

    def _update_matrices(self, group: dict[str, Any], batch: Batch) -> None:
        velocities, m, lie = buffers(batch, "momentum_buffer"), group["momentum"], (group["matrices"], group["layout"])
        wide = velocities[0].dtype
        dtype = self.dtype or (torch.float64 if wide == torch.float64 else torch.bfloat16)
        shares = self._shares(batch)
        made: dict[int, Tensor] = {}
        for numbers in _of_one_shape(batch.wholes, batch.params[0].device):
            vs, grads = [velocities[i] for i in numbers], widened([batch.grads[i] for i in numbers], wide)
            if group["maximize"]:
                grads = list(torch._foreach_neg(grads))
            torch._foreach_lerp_(vs, grads, 1 - m)
            mine = [i for i in numbers if shares is None or shares[i] == dist.get_rank(self.process_group)]
            if not mine:
                continue
            own = [grads[numbers.index(i)] for i in mine]
            ahead = [g.lerp(velocities[i], m) if group["nesterov"] else velocities[i] for i, g in zip(mine, own, strict=True)]
            made |= zip(mine, self.orthogonal(group, batch, mine, own, ahead, dtype), strict=True)
            if shares is None:
                _step(group, batch, {i: made.pop(i) for i in numbers})
        if shares is not None:
            _step(group, batch, self._exchange(batch, made, shares, lie, dtype))

    def orthogonal(
        self, group: dict[str, Any], batch: Batch, numbers: list[int], grads: list[Tensor], momenta: list[Tensor], dtype: torch.dtype
    ) -> Tensor:
        """The orthogonal matrices of some tensors of one shape, (tensors, matrices, outputs, inputs).

        Args:
            group: Settings.
            batch: That the tensors are of.
            numbers: Which of its tensors.
            grads: What this rank holds of the gradient of each; not written.
            momenta: What it holds of Z of each; not written.
            dtype: Type to compute in.
        """
        del grads
        lie = group["matrices"], group["layout"]
        stack = torch.stack(
            [as_matrices(full_tensor_like(z, batch.wholes[i]), *lie).to(dtype) for i, z in zip(numbers, momenta, strict=True)]
        )
        return orthogonalise(stack, steps=group["steps"])

    def _shares(self, batch: Batch) -> list[int] | None:
        """Which rank orthogonalises which tensor: the costliest first, each to the rank with the least to do."""
        if self.process_group is None or dist.get_world_size(self.process_group) == 1:
            return None
        costs = [p.numel() * min(p.size(0), p[0].numel()) for p in batch.wholes]
        load = [0] * dist.get_world_size(self.process_group)
        owners = [0] * len(costs)
        for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
            owners[i] = load.index(min(load))
            load[owners[i]] += costs[i]
        return owners

    def _exchange(
        self, batch: Batch, made: dict[int, Tensor], owners: list[int], lie: tuple[int, str], dtype: torch.dtype
    ) -> dict[int, Tensor]:
        """All-gather: every rank sends what it made, as one vector of the length of the longest."""
        rank, world = dist.get_rank(self.process_group), dist.get_world_size(self.process_group)
        by_rank = [[i for i, owner in enumerate(owners) if owner == r] for r in range(world)]
        length = max(sum(batch.wholes[i].numel() for i in numbers) for numbers in by_rank)
        sent = torch.zeros(length, dtype=dtype, device=batch.params[0].device)
        if by_rank[rank]:
            own = torch.cat([made[i].reshape(-1) for i in by_rank[rank]])
            sent[: own.numel()] = own
        received = [torch.empty_like(sent) for _ in range(world)]
        dist.all_gather(received, sent, group=self.process_group)
        found: dict[int, Tensor] = {}
        for numbers, vector in zip(by_rank, received, strict=True):
            start = 0
            for i in numbers:
                shape, stop = batch.wholes[i].shape, start + batch.wholes[i].numel()
                found[i] = vector[start:stop].view(matrix_shape(shape, *lie))
                start = stop
        return found


def _of_one_shape(tensors: Sequence[Tensor], device: torch.device) -> Iterator[list[int]]:
    """Indices of tensors that can be orthogonalised as one batch."""
    by_shape: dict[torch.Size, list[int]] = {}
    for i, t in enumerate(tensors):
        by_shape.setdefault(t.shape, []).append(i)
    for shape, numbers in by_shape.items():
        length = max(LARGEST_STACK // shape.numel(), 1) if device.type == "cpu" else len(numbers)
        yield from (numbers[i : i + length] for i in range(0, len(numbers), length))


def _step(group: dict[str, Any], batch: Batch, orthogonal: dict[int, Tensor]) -> None:
    """Decay the weights by eta lambda and take eta scale O from them."""
    for i, o in orthogonal.items():
        p = batch.params[i]
        wide = widened([p], torch.promote_types(p.dtype, torch.float32))[0]
        if group["weight_decay"]:
            wide.mul_(1 - group["lr"] * group["weight_decay"])
        step = shard_like(from_matrices(o, batch.wholes[i].shape, group["matrices"], group["layout"]), batch.wholes[i])
        rate = group["lr"] * step_scale(group["scale"], o.size(-2), o.size(-1))
        if isinstance(rate, Tensor):
            wide.sub_(step.to(wide.dtype) * rate)
        else:
            wide.sub_(step, alpha=rate)
        if wide is not p:
            p.copy_(wide)


def _adamw(group: dict[str, Any], batch: Batch) -> None:
    weights, grads = [flat(t) for t in batch.params], [flat(t) for t in batch.grads]
    firsts, seconds = ([flat(t) for t in buffers(batch, name)] for name in ("exp_avg", "exp_avg_sq"))
    bias = corrections(batch, group["betas"])
    for block in blocks(tuple(w.numel() for w in weights), block_limit(weights[0].device)):
        ws = take(weights, block)
        steps = adam_directions(take(grads, block), take(firsts, block), take(seconds, block), group, bias.of(p.number for p in block))
        if group["weight_decay"]:
            torch._foreach_add_(steps, widened(ws, steps[0].dtype), alpha=group["weight_decay"])
        torch._foreach_mul_(steps, group["lr"])
        subtract(ws, steps)
