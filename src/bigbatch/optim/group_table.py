"""What group each parameter falls into, and why, as a table to read."""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from torch import nn

from bigbatch.core.checks import UserError, unknown
from bigbatch.core.tensors.groups import ROLES, Overrides, check_overrides, no_weight_decay, why_norm_or_bias
from bigbatch.core.tensors.matrices import matrix_shape
from bigbatch.core.tensors.owners import Shared, chosen_by_name, owned_parameters
from bigbatch.optim.muon.muon_split import muon_uses


class ParameterRow(NamedTuple):
    """One parameter; one that several modules share has the name of the first."""

    name: str
    shape: tuple[int, ...]
    group: str  # "muon" or "adam"; "weights" or "norms_and_biases"; "frozen"
    why: str
    matrices: tuple[int, int, int] | None = None  # for Muon: how many, outputs, inputs


class GroupPart(NamedTuple):
    """Parameters of one group for one reason."""

    group: str
    why: str
    tensors: int
    values: int
    names: str  # the first three, and the last


class GroupTable(tuple[ParameterRow, ...]):
    """The rows, in the order of `model.named_parameters()`; `print` shows them as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        header = ("name", "shape", "group", "why")
        cells = [header, *((r.name, _shape(r), r.group, r.why) for r in self)]
        widths = [max(len(row[i]) for row in cells) for i in range(3)]
        return "\n".join("  ".join((*(row[i].ljust(widths[i]) for i in range(3)), row[3])).rstrip() for row in cells)

    def summary(self) -> Iterator[GroupPart]:
        """The table in short: what has one group for one reason goes together."""
        alike: dict[tuple[str, str], list[ParameterRow]] = {}
        for row in sorted(self, key=lambda r: ("muon", "weights", "adam", "norms_and_biases", "frozen").index(r.group)):
            alike.setdefault((row.group, row.why.partition(";")[0]), []).append(row)
        for (group, why), rows in alike.items():
            yield GroupPart(group, why, len(rows), sum(math.prod(r.shape) for r in rows), _names([r.name for r in rows]))


def describe_groups(
    model: nn.Module, *, kind: Literal["muon", "decay"] = "muon", head: str | None = None, overrides: Overrides | None = None
) -> GroupTable:
    """The groups that `muon_groups` (kind "muon") or `param_groups` (kind "decay") make of a model's parameters.

    Args:
        model: Any module; parameters with `requires_grad=False` are shown as frozen.
        kind: Which split.
        head: As for `muon_groups`.
        overrides: As for the function that makes the groups.

    Returns:
        A table: a tuple of rows, of which each prints in a line.

    Raises:
        UserError: As the function that makes the groups.

    >>> print(describe_groups(nn.Sequential(nn.Embedding(9, 4), nn.LSTM(4, 3, bias=False), nn.LayerNorm(3), nn.Linear(3, 2))))
    name            shape               group  why
    0.weight        9 x 4               adam   embedding
    1.weight_ih_l0  12 x 4: 4 of 3 x 4  muon   LSTM, one for each gate
    1.weight_hh_l0  12 x 3: 4 of 3 x 3  muon   LSTM, one for each gate
    2.weight        3                   adam   norm
    2.bias          3                   adam   norm
    3.weight        2 x 3               adam   output layer, no other layer consumes its output
    3.bias          2                   adam   bias
    """
    if kind not in ("muon", "decay"):
        raise UserError(unknown("kind", kind, ("muon", "decay")))
    rows = _muon_rows(model, head, overrides) if kind == "muon" else _decay_rows(model, overrides)
    return GroupTable(rows)


def _muon_rows(model: nn.Module, head: str | None, overrides: Overrides | None) -> Iterator[ParameterRow]:
    for p, use, _ in muon_uses(model, head=head, overrides=overrides):
        matrices = matrix_shape(p.tensor.shape, use.matrices, use.layout) if use.matrices else None
        yield _row(p, "muon" if use.matrices else "adam", use.why, matrices)


def _decay_rows(model: nn.Module, overrides: Overrides | None) -> Iterator[ParameterRow]:
    parameters, named = owned_parameters(model), no_weight_decay(model)
    chosen = chosen_by_name(parameters, check_overrides(overrides, ROLES))
    for p in parameters:
        why = why_norm_or_bias(p, named)
        own = chosen.get(p.name)
        group = (own or {}).get("group") or ("norms_and_biases" if why else "weights")
        yield _row(p, group, "override" if own else why or "weight")


def _row(parameter: Shared, group: str, why: str, matrices: tuple[int, int, int] | None = None) -> ParameterRow:
    trained = parameter.tensor.requires_grad
    return ParameterRow(parameter.name, tuple(parameter.tensor.shape), group if trained else "frozen", why, matrices if trained else None)


def _shape(row: ParameterRow) -> str:
    plain = " x ".join(map(str, row.shape)) or "scalar"
    if row.matrices is None or row.matrices == (1, *row.shape):
        return plain
    return f"{plain}: {row.matrices[0]} of {row.matrices[1]} x {row.matrices[2]}"


def _names(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f", ... {names[-1]}" if len(names) > most else "")
