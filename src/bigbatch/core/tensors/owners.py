"""Which modules own a parameter, under all of its names, and patterns that choose parameters by name."""

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeVar

from torch import Tensor, nn

from bigbatch.core.checks import UserError

T = TypeVar("T")


class Owner(NamedTuple):
    """A module that holds a parameter."""

    path: str  # the module's name in the model, "" for the model itself
    attribute: str  # the parameter's name in the module
    module: nn.Module
    parent: nn.Module | None  # what holds the module

    @property
    def name(self) -> str:
        """The parameter's name in the model."""
        return f"{self.path}.{self.attribute}" if self.path else self.attribute

    @property
    def kind(self) -> str:
        """Name of the module's class."""
        return type(self.module).__name__


class Shared(NamedTuple):
    """A parameter with everything that owns it: tied weights have several owners."""

    tensor: Tensor
    owners: list[Owner]

    @property
    def name(self) -> str:
        """Its name in `model.named_parameters()`: that of the first owner."""
        return self.owners[0].name


def owned_parameters(model: nn.Module) -> list[Shared]:
    """Every parameter once, in the order of `model.named_parameters()`, with all of its owners.

    >>> tied = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 3, bias=False))
    >>> tied[1].weight = tied[0].weight
    >>> [(p.name, [o.name for o in p.owners]) for p in owned_parameters(tied)]
    [('0.weight', ['0.weight', '1.weight'])]
    """
    modules = dict(model.named_modules())
    found: dict[int, Shared] = {}
    for path, module in modules.items():
        for attribute, p in module.named_parameters(recurse=False, remove_duplicate=False):
            owner = Owner(path, attribute, module, modules[path.rpartition(".")[0]] if path else None)
            found.setdefault(id(p), Shared(p, [])).owners.append(owner)
    return list(found.values())


def chosen_by_name(parameters: Iterable[Shared], patterns: Mapping[str, T]) -> dict[str, T]:
    """What patterns say about parameters: name of the parameter to the value of the last pattern that matches any of its names.

    Args:
        parameters: From `owned_parameters`.
        patterns: Shell patterns (`*`, `?`, `[abc]`) of whole names to values. "*.head.weight" is `head.weight` at any depth, also at none.

    Raises:
        UserError: If a pattern matches nothing, with the names nearest to it.
    """
    parameters = list(parameters)
    chosen: dict[str, T] = {}
    for pattern, value in patterns.items():
        matches = [p.name for p in parameters if any(_matches(o.name, pattern) for o in p.owners)]
        if not matches:
            raise UserError(_matches_nothing(pattern, [o.name for p in parameters for o in p.owners]))
        chosen |= dict.fromkeys(matches, value)
    return chosen


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(f".{name}", pattern)


def _matches_nothing(pattern: str, names: list[str]) -> str:
    bare = pattern.replace("*", "").strip(".")
    near = [n for n in names if bare and bare in n][:3] or difflib.get_close_matches(bare, names, n=3, cutoff=0.4)
    near = near or names[:3]
    return f"pattern {pattern!r}: matches no parameter; near it are {', '.join(near) or 'none'}; * stands for any text"
