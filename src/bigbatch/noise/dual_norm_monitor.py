"""The noise scale in the norm of the optimizer, measured now and then while a training loop runs.

At every so many updates the monitor looks: hooks on the parameters, which are there for this update alone, add up the gradients of at most
four groups of passes. After the last pass the mean gradient is there anyway, and with each group's own it tells that of all other samples.
The same holds for one process with several micro-batches and for ranks under DistributedDataParallel, whose gradients are seen before they
are exchanged. Nothing is sent but scalars, and the device is not waited for, until values are read. Two looks in a row make one
measurement of signal and noise; the formulas and what they are worth are in `bigbatch.noise.dual_norm`.

Cost: a look keeps one copy of the gradient a group, four on one process, and in the nuclear norm makes orthogonal matrices of eight
gradients; between looks passes are counted. Of a small GPT a look adds 8 % to an update with AdamW (l1) and 86 % with Muon (nuclear): 0.4
and 4.3 % of a run at the default spacing; between looks it is below what the machine's noise lets see (benchmarks/dual_norm_overhead.json).

    monitor = DualNormMonitor(model, norm="l1", optimizer=optimizer)
    for inputs, targets in loader:
        for x, y in zip(inputs.chunk(4), targets.chunk(4)):
            (loss_of(model(x), y) / 4).backward()           # a sum over len(x) samples, divided by 4 len(x)
            monitor.micro_batch(len(x), divisor=4 * len(x))
        monitor.update()                                    # before clipping and before zero_grad
        optimizer.step()
        optimizer.zero_grad()
    print(monitor.estimate())
"""

import math
import warnings
from collections import deque
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from bigbatch.core.checks import UserError, check_positive, unknown
from bigbatch.core.tensors.matrices import as_matrices
from bigbatch.core.tensors.ordered_sum import sum_over_ranks_
from bigbatch.noise.dual_norm import NORMS, Alignment, Norm, alignment_of, check_groups, dual_noise, pairings
from bigbatch.noise.estimate import NoiseEstimate, estimate
from bigbatch.noise.reader import ALL, NOTHING, Measured
from bigbatch.noise.unchanged import Mark, check_unchanged, mark

KEPT, READ_AFTER = 10_000, 100
"""Measurements that are remembered and saved; updates after which values are read from the device unasked."""
UNEQUAL = 0.0025
"""Greatest squared coefficient of variation of the groups' samples: a tenth between the smallest and the largest."""


class Step(NamedTuple):
    """How the optimizer steps with one parameter."""

    norm: Norm
    weight: float  # length of its step, relative to the other parameters'
    matrices: int = 1
    layout: str = "rows"


class Look(NamedTuple):
    """One look of this rank, not yet read."""

    pairings: Tensor  # (4, groups, parameters)
    samples: list[float]  # (groups,)
    weights: list[float]  # (groups,): what each added to the gradient is so many times its mean gradient
    all_samples: float  # of the update, on this rank
    all_weights: float
    loss_scale: float


class Group(NamedTuple):
    """What one group of passes has added."""

    gradients: list[Tensor | None]
    samples: float = 0.0
    weight: float = 0.0
    passes: int = 0


class Read(NamedTuple):
    """One look, read."""

    parts: dict[str, Alignment]
    small_batch: float
    large_batch: float


class DualNormMonitor:
    """Measures in any loop. See the module's docstring.

    Args:
        model: Its trainable parameters are measured. Wrap it in DistributedDataParallel before or after.
        norm: "l1" for sign methods and Adam, "nuclear" for Muon, "euclidean" for normalised SGD. With "nuclear", parameters that are no
            matrices, or that the optimizer doesn't orthogonalise, are measured in l1.
        optimizer: Tells the length of each parameter's step per unit of rate, and which matrices Muon orthogonalises. Without it all
            steps are as those of one rate, every parameter of two or more dimensions is a matrix, and a convolution is one of output
            channels x the rest.
        every_updates: From one look to the next.
        num_groups: Groups of a look on this rank, at most. Fewer passes are fewer groups; over all ranks there must be three.
        parts: Name to parameters, each measured by itself beside the whole; see `layers_of`.
        process_group: Ranks whose gradients are averaged; "all" of them if torch.distributed runs, or None for this process alone.

    Raises:
        UserError: If the model has nothing to train, is sharded, or has no matrices for the nuclear norm.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        norm: Norm,
        optimizer: Optimizer | None = None,
        every_updates: int = 20,
        num_groups: int = 4,
        parts: Mapping[str, Iterable[nn.Parameter]] | None = None,
        process_group: Any = "all",
    ) -> None:
        if norm not in NORMS:
            raise UserError(unknown("norm", norm, NORMS))
        check_positive("every_updates", every_updates)
        check_positive("num_groups", num_groups)
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self._named:
            raise UserError("the model has no trainable parameters: there is no gradient to measure; check requires_grad")
        if any(isinstance(p, DTensor) for p in self._named.values()):
            raise UserError("a sharded model: no rank has the whole gradient, and its norm can't be taken; measure with NoiseScaleMonitor")
        self.norm, self._every, self._num_groups = norm, every_updates, num_groups
        self._steps = steps_of(self._named, norm, optimizer)
        if process_group == "all":
            process_group = dist.group.WORLD if dist.is_initialized() else None
        self._group = process_group
        self._world_size = dist.get_world_size(process_group) if process_group is not None else 1
        number = {id(p): i for i, p in enumerate(self._named.values())}
        chosen = {name: [number[id(p)] for p in parameters if id(p) in number] for name, parameters in (parts or {}).items()}
        self._parts = {ALL: list(number.values()), **chosen}
        self._pending: list[Look | None] = []
        self._unread: deque[Measured] = deque(maxlen=100_000)
        self._measured: deque[Measured] = deque(maxlen=KEPT)
        self._before: Read | None = None
        self._num_updates = self._num_passes = self._few = 0
        self._handles: list[Any] = []
        self._left: list[Mark] | None  # gradients as the last pass left them
        self._begin_update()

    def micro_batch(self, num_samples: int, *, divisor: float) -> None:
        """After each backward pass.

        Args:
            num_samples: Samples of the pass; 0 for one that weighs nothing.
            divisor: What the *sum* of their losses was divided by; see `NoiseScaleMonitor.micro_batch`.
        """
        self._passes += num_samples > 0
        if not self._handles:
            return
        if num_samples:
            weight = num_samples / divisor
            self._all_samples += num_samples
            self._all_weights += weight
            if not self._is_full:
                g = self._groups[-1]
                self._groups[-1] = Group(g.gradients, g.samples + num_samples, g.weight + weight, g.passes + 1)
                if g.passes + 1 == max(1, self._num_passes // self._num_groups):
                    self._groups.append(self._empty())
        self._left = [mark(p) for p in self._named.values()]

    def update(self, *, loss_scale: float = 1.0) -> None:
        """After the last pass of an update, before clipping and before the step; also where the step is skipped.

        Args:
            loss_scale: Of a gradient scaler, as for `NoiseScaleMonitor.update`.

        Raises:
            UserError: If gradients of a look were changed since the last `micro_batch`: clipped, unscaled, averaged, or set to zero.
        """
        self._pending.append(self._look(loss_scale) if self._handles else None)
        self._num_updates += 1
        self._num_passes = self._passes
        self._begin_update()
        if len(self._pending) >= READ_AFTER:
            self._read()

    def forget(self) -> None:
        """Leave out the passes since the last update."""
        self._begin_update()

    def flush(self) -> list[Measured]:
        """Each update since the last call, NaN where nothing was measured: every rank calls it at the same time."""
        self._read()
        measured = list(self._unread)
        self._unread.clear()
        return measured

    def estimate(self, part: str = ALL, *, last: int | None = None, confidence: float = 0.95) -> NoiseEstimate:
        """The noise scale over the last measurements, of two looks each; every rank calls it at the same time.

        Args:
            part: Of the model.
            last: So many measurements; all since the start if left out.
            confidence: Of the two-sided interval.

        Raises:
            UserError: If the part is unknown, or nothing was measured.
        """
        self._read()
        if part not in self._parts:
            raise UserError(f"part {part!r}: is not measured; known: {', '.join(self._parts)}")
        scales = [measured.parts[part] for measured in list(self._measured)[-last if last else None :]]
        if not scales:
            raise UserError(
                f"{self._num_updates:,} updates, a look every {self._every:,}: two looks are one measurement; go on, or lower every_updates"
            )
        if not any(math.isfinite(s.signal) for s in scales):
            check_groups(min(self._few, 2))
        return estimate([s.signal for s in scales], [s.noise for s in scales], confidence=confidence)

    def state_dict(self) -> dict[str, Any]:
        """What was measured, and where the next look is; tensors and plain values.

        On several ranks, up to 100 updates whose values were not read yet are left out: reading takes all ranks.
        """
        if self._group is None:
            self._read()
        rows = [[v for scale in m.parts.values() for v in scale] for m in self._measured]
        measured = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 2 * len(self._parts))
        before = None if self._before is None else [[list(a) for a in self._before.parts.values()], *self._before[1:]]
        counts = {"num_updates": self._num_updates, "num_passes": self._num_passes}
        return {"norm": self.norm, "parts": list(self._parts), "measured": measured, "before": before, **counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; estimates go on from what was measured before.

        Raises:
            UserError: If another norm, or other parts, were measured.
        """
        if "norm" not in state:
            raise UserError("the plain noise scale was measured before: measure it, with norm = 'euclidean' of a rule, or start anew")
        if (state["norm"], state["parts"]) != (self.norm, list(self._parts)):
            raise UserError(
                f"norm {self.norm!r} of {list(self._parts)}: norm {state['norm']!r} of {state['parts']} was measured before; "
                "measure the same, or start anew"
            )
        self._measured.clear()
        for row in state["measured"].tolist():
            scales = [NOTHING._replace(signal=row[2 * i], noise=row[2 * i + 1]) for i in range(len(self._parts))]
            self._measured.append(Measured(dict(zip(self._parts, scales, strict=True)), math.nan))
        self._before = None
        if state["before"] is not None:
            alignments, *batches = state["before"]
            self._before = Read({name: Alignment(*a) for name, a in zip(self._parts, alignments, strict=True)}, *batches)
        self._num_updates, self._num_passes = state["num_updates"], state["num_passes"]
        self._begin_update()

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def _is_full(self) -> bool:
        return len(self._groups) > self._num_groups

    def _empty(self) -> Group:
        return Group([None] * len(self._named))

    def _begin_update(self) -> None:
        """Hooks are there while an update is looked at."""
        self._passes, self._all_samples, self._all_weights = 0, 0.0, 0.0
        self._groups = [self._empty()]
        self._left = None
        self.close()
        if (self._num_updates + 1) % self._every == 0:
            for number, p in enumerate(self._named.values()):
                self._handles.append(p.register_hook(partial(self._on_gradient, number)))  # type: ignore[no-untyped-call]

    def _on_gradient(self, number: int, gradient: Tensor) -> None:
        """What a pass is about to add to a parameter's gradient."""
        if not self._is_full:
            held = self._groups[-1].gradients
            before = held[number]
            held[number] = gradient.clone() if before is None else before.add_(gradient)

    def _look(self, loss_scale: float) -> Look:
        if self._left is not None:
            check_unchanged(self._named, self._left)
        groups = self._groups[:-1]
        self._few = len(groups) * self._world_size
        if self._few < 3:
            warnings.warn(
                f"a look with {self._few} groups of samples: tells nothing; three micro-batches or ranks are needed", stacklevel=3
            )
        columns = []
        for number, (p, step) in enumerate(zip(self._named.values(), self._steps, strict=True)):
            wide = torch.promote_types(p.dtype, torch.float32)
            zero = torch.zeros_like(p, dtype=wide)
            whole = zero if p.grad is None else p.grad.to(wide) * self._world_size
            given = [g.gradients[number] for g in groups]
            own = [zero if g is None else g.to(wide) for g in given]
            others = [whole - g for g in own]
            if step.norm == "nuclear":
                own, others = ([as_matrices(g, step.matrices, step.layout) for g in gs] for gs in (own, others))
            if groups:
                sums = pairings(torch.stack(own), torch.stack(others), step.norm)
                columns.append(torch.cat([sums[:2] * step.weight, sums[2:]]))
        values = torch.stack(columns, dim=-1) if columns else torch.zeros(4, 0, len(self._named))
        return Look(values, [g.samples for g in groups], [g.weight for g in groups], self._all_samples, self._all_weights, loss_scale)

    def _read(self) -> None:
        pending, self._pending = self._pending, []
        read = iter(self._read_looks([look for look in pending if look is not None]))
        nothing = Measured(dict.fromkeys(self._parts, NOTHING), math.nan)
        for look in pending:
            measured = None if look is None else self._pair(next(read))
            self._unread.append(measured or nothing)
            if measured is not None:
                self._measured.append(measured)

    def _pair(self, look: Read | None) -> Measured | None:
        """With the look before; None where there is none of the same batch."""
        before, self._before = self._before, look
        if look is None:
            return Measured(dict.fromkeys(self._parts, NOTHING), math.nan)
        if (
            before is None
            or abs(math.log(before.small_batch / look.small_batch)) + abs(math.log(before.large_batch / look.large_batch)) > 0.1
        ):
            return None
        small, large = math.sqrt(before.small_batch * look.small_batch), math.sqrt(before.large_batch * look.large_batch)
        scales = {name: dual_noise(before.parts[name], a, small_batch=small, large_batch=large) for name, a in look.parts.items()}
        return Measured(scales, math.nan)

    def _read_looks(self, looks: list[Look]) -> list[Read | None]:
        """D1 and D2 of each look, None where it tells nothing: two sums over ranks, of a few numbers a look."""
        if not looks:
            return []
        counts = [[k.all_samples, k.all_weights, len(k.samples), sum(k.samples), sum(n * n for n in k.samples)] for k in looks]
        totals = self._sum(torch.tensor(counts, dtype=torch.float64)).tolist()
        rows = []
        for look, (_, weights, *_) in zip(looks, totals, strict=True):
            values, w = look.pairings.double().cpu(), torch.tensor(look.weights, dtype=torch.float64)
            scale = torch.stack([weights - w, w]) * look.loss_scale
            euclidean: Norm = "euclidean" if self.norm == "euclidean" else "l1"
            of_parts = [(alignment_of(values[..., numbers].sum(-1), euclidean) / scale).sum(1) for numbers in self._parts.values()]
            rows.append(torch.cat(of_parts))
        sums = self._sum(torch.stack(rows)).tolist()
        return [self._as_read(total, row) for total, row in zip(totals, sums, strict=True)]

    def _as_read(self, total: list[float], row: list[float]) -> Read | None:
        all_samples, _, number, samples, squares = total
        if number < 3 or squares * number / samples**2 - 1 > UNEQUAL or not all(map(math.isfinite, row)):
            return None
        alignments = [Alignment(row[2 * i] / number, row[2 * i + 1] / number) for i in range(len(self._parts))]
        small = samples / number
        return Read(dict(zip(self._parts, alignments, strict=True)), small, all_samples - small)

    def _sum(self, rows: Tensor) -> Tensor:
        if self._group is not None:
            rows = rows.to(next(iter(self._named.values())).device)
            sum_over_ranks_(rows, self._group)
        return rows.cpu()


def steps_of(named: Mapping[str, nn.Parameter], norm: Norm, optimizer: Optimizer | None) -> list[Step]:
    """How each parameter is stepped with.

    Args:
        named: Parameters by name.
        norm: Of the whole.
        optimizer: See `DualNormMonitor`.

    Raises:
        UserError: If the optimizer doesn't train one of them, or the nuclear norm finds no matrix.
    """
    groups = {id(p): group for group in (optimizer.param_groups if optimizer else []) for p in group["params"]}
    steps = []
    for name, p in named.items():
        if optimizer is not None and id(p) not in groups:
            raise UserError(f"parameter {name}: is not in the optimizer, so it is not stepped with; freeze it, or give it too")
        group = groups.get(id(p), {"lr": 1.0})
        rate = float(group.get("initial_lr", group["lr"]))
        if norm == "nuclear" and group.get("orthogonalise", p.ndim >= 2):
            laid_out = group.get("matrices", 1), group.get("layout", "rows")
            rows, columns = as_matrices(p.detach(), *laid_out).shape[-2:]
            factor = max(1.0, rows / columns) ** 0.5 if group.get("scale") == "original" else 0.2 * max(rows, columns) ** 0.5
            steps.append(Step("nuclear", rate * factor, *laid_out))
        else:
            steps.append(Step("l1" if norm == "nuclear" else norm, rate))
    if norm == "nuclear" and all(step.norm != "nuclear" for step in steps):
        raise UserError("norm = 'nuclear', and a model without matrices that are orthogonalised: nothing has a nuclear norm; take 'l1'")
    longest = 1.0 if norm == "euclidean" else max(step.weight for step in steps) or 1.0
    return [step._replace(weight=1.0 if norm == "euclidean" else step.weight / longest) for step in steps]
