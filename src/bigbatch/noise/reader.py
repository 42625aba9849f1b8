"""From the norms that a monitor left on the device to signal and noise: read at once for many updates, summed over ranks.

An update's values have the same bits, however many others are read with it: see `bigbatch.core.tensors.ordered_sum`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from bigbatch.core.checks import UserError
from bigbatch.core.tensors.ordered_sum import add_in_order, sum_over_ranks_
from bigbatch.noise.simple_noise_scale import Groups, NoiseScale, noise_of_groups

ALL = "all"
"""The part of a model that is the whole of it."""
NOTHING = NoiseScale(float("nan"), float("nan"))


class Measured(NamedTuple):
    """One update."""

    parts: dict[str, NoiseScale]  # of the whole model ("all") and its parts; NaN where the update tells nothing
    noise_along: float  # variance over samples of the gradient along the mean gradient of the update before; NaN if not asked for

    @property
    def signal(self) -> float:
        """|G|^2 of the whole model."""
        return self.parts[ALL].signal

    @property
    def noise(self) -> float:
        """tr(S) of the whole model."""
        return self.parts[ALL].noise


class Pending(NamedTuple):
    """One update of this rank, not yet read."""

    passes: list[list[Tensor]]  # groups x parameters: norms of what each group of samples added
    factors: list[float]  # (groups,): n / weight^2
    whole: list[Tensor]  # parameters: norms of the gradient of all
    along: Tensor  # (3,): sum of n (g . d)^2, (g . d)^2 of the gradient of all, |d|^2
    counts: tuple[float, ...]  # samples, groups, weight, spread of the groups
    scale: float  # of squared norms


class Reader:
    """Reads what is pending; every rank does at the same time.

    Args:
        parts: Name to numbers of parameters; "all" is one of them.
        population: D of the formula.
        device: Of the norms.
        group: Ranks whose gradients are averaged, or None.
        sharded: Whether each has a shard of the whole gradient, and not a copy.
        own: Whether each has the gradient of its own groups alone.
    """

    def __init__(
        self, parts: Mapping[str, Sequence[int]], population: float, device: torch.device, group: Any, *, sharded: bool, own: bool
    ) -> None:
        self.parts = list(parts)
        self._population, self._device, self._group, self._own = population, device, group, own
        self._world_size = dist.get_world_size(group) if group is not None else 1
        self._averaged = 1 if own else self._world_size  # gradients are means over so many ranks
        self._copies = 1.0 if sharded else 1.0 / self._averaged  # every rank adds its shard, or its copy, to the sum
        self._numbers = [list(numbers) for numbers in parts.values()]

    @property
    def communicates(self) -> bool:
        """Whether reading takes all ranks."""
        return self._group is not None

    @property
    def num_sharing(self) -> int:
        """Ranks whose passes are compared with each other."""
        return self._averaged

    def read(self, pending: Sequence[Pending]) -> list[Measured]:
        """Signal and noise of each update."""
        if not pending:
            return []
        rows = self._rows(pending)
        if self._group is not None and not self._own:
            rows = rows.to(self._device)
            sum_over_ranks_(rows, self._group)
        measured = [self._split(row) for row in rows.tolist()]
        return self._mean_over_ranks(measured) if self._group is not None and self._own else measured

    def _rows(self, pending: Sequence[Pending]) -> Tensor:
        """What is summed over ranks, shape (updates, columns): by part the squared norms of groups and whole; along; counts.

        Norms are brought to the host at once: what follows is many operations on few numbers.
        """
        wide: dict[str, Any] = {"dtype": torch.float64}
        scales = torch.tensor([p.scale for p in pending], **wide)
        norms = [norm for p in pending for of_group in (*p.passes, p.whole) for norm in of_group]
        sq = torch.stack(norms).double().cpu().square().view(-1, len(pending[0].whole))  # groups of the first update, its whole, ...
        sq_norms, whole = self._of_groups(pending, sq)
        columns = [*self._of_parts(sq_norms, scales), *self._of_parts(whole, scales * self._copies)]
        along = torch.stack([p.along for p in pending]).double().cpu()
        factors = torch.stack([scales, scales * self._copies, torch.full_like(scales, self._copies)], dim=1)
        counts = torch.tensor([p.counts for p in pending], **wide)
        return torch.cat([torch.stack(columns, dim=1), along * factors, counts], dim=1)

    def _of_groups(self, pending: Sequence[Pending], sq: Tensor) -> tuple[Tensor, Tensor]:
        """Squared norms of the groups of each update, weighted and added up, and of its whole gradient; both (updates, parameters)."""
        most = max(1, *(len(p.passes) for p in pending))
        rows: list[int] = []
        ends: list[int] = []
        factors: list[float] = []
        for p in pending:
            start, size = ends[-1] + 1 if ends else 0, len(p.passes)
            rows += [start + min(number, size) for number in range(most)]  # those that it lacks: the whole, times zero
            factors += [*p.factors, *[0.0] * (most - size)]
            ends.append(start + size)
        weights = torch.tensor(factors, dtype=torch.float64).unsqueeze(1)
        weighted = torch.where(weights == 0, 0.0, sq[rows] * weights).view(len(pending), most, sq.shape[1])
        whole = sq[ends]
        return add_in_order([torch.zeros_like(whole), *weighted.unbind(1)]), whole

    def _of_parts(self, values: Tensor, scales: Tensor) -> list[Tensor]:
        """Sums over the parameters of each part, each (updates,), from (updates, parameters)."""
        columns = [torch.zeros_like(scales), *values.unbind(1)]
        return [add_in_order([columns[i] for i in (0, *(n + 1 for n in numbers))]) * scales for numbers in self._numbers]

    def _split(self, row: list[float]) -> Measured:
        """Signal and noise from the sums of one update."""
        n = len(self.parts)
        sq_norms, whole, (sq_along, along, direction), counts = row[:n], row[n : 2 * n], row[2 * n : -4], row[-4:]
        samples, number, weight, spread = counts[0], counts[1], counts[2] / self._averaged, counts[3] / self._averaged**2
        groups = [Groups(sq_norm, samples, number, weight, spread) for sq_norm in sq_norms]
        try:
            parts = [noise_of_groups(g, sq_norm=q, population=self._population) for g, q in zip(groups, whole, strict=True)]
        except (UserError, ZeroDivisionError):  # one group, or none with weight: `estimate` says so if no update tells more
            return Measured(dict.fromkeys(self.parts, NOTHING), float("nan"))
        noise_along = float("nan")
        if direction:
            noise_along = noise_of_groups(groups[0]._replace(sq_norms=sq_along), sq_norm=along).noise / direction
        return Measured(dict(zip(self.parts, parts, strict=True)), noise_along)

    def _mean_over_ranks(self, measured: list[Measured]) -> list[Measured]:
        """The mean of what every rank measured by itself; NaN where one of them could not."""
        values = [[v for scale in m.parts.values() for v in scale] + [m.noise_along] for m in measured]
        means = torch.tensor(values, dtype=torch.float64, device=self._device) / self._world_size
        sum_over_ranks_(means, self._group)
        rows = means.tolist()
        return [Measured({name: NoiseScale(*row[2 * i : 2 * i + 2]) for i, name in enumerate(self.parts)}, row[-1]) for row in rows]
