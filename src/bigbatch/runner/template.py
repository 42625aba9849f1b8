"""A command with fields of a recipe in it, such as `python train.py --lr {optimizer.lr:g} --batch-size {batch.global_batch}`.

Fields are a recipe's own, by their dotted names, and what follows from them:

    seed, out, recipe        seed; folder for the run's files; path of a TOML file with the whole recipe
    start                    path of the checkpoint that a branch begins from; empty in any other run
    num_updates              optimizer updates of the run
    total_samples, epochs    its length in the other two units
    warmup.updates, warmup.samples
    device_batch             samples of one forward pass on one device: as the settings state it, or the largest number below it of which
                             the global batch is a multiple; the global batch if they do not
    accumulation             forward passes of one update: global batch over device batch
    beta1, beta2             of the optimizer

with Python's formats (`{optimizer.lr:.3e}`) and `{{`, `}}` for braces. Without a shell, the template is split into arguments first and
filled then, so that values with spaces or quotes stay one argument; with a shell, values are quoted.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from bigbatch.core.checks import UserError, unknown
from bigbatch.recipe import Recipe
from bigbatch.runner.fields import covers

DERIVED: Mapping[str, tuple[str, ...]] = {
    "seed": ("seed",),
    "out": (),
    "start": (),
    "recipe": ("seed", "precision", "num_train_samples", "optimizer.*", "schedule.*", "batch.*", "budget.*", "model.*", "comm.*"),
    "num_updates": ("budget.*",),
    "total_samples": ("budget.*",),
    "epochs": ("budget.*",),
    "warmup.updates": ("schedule.warmup.*",),
    "warmup.samples": ("schedule.warmup.*",),
    "device_batch": (),  # the global batch too, where it is not stated
    "accumulation": ("batch.global_batch",),
    "beta1": ("optimizer.betas",),
    "beta2": ("optimizer.betas",),
}
"""Derived fields, and the recipe's fields that each brings to the command."""


class _Fields(Formatter):
    """Looks a dotted name up as it stands."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:  # noqa: ARG002
        name, bracket, index = field_name.partition("[")
        if name not in kwargs:
            raise KeyError(name)
        value = kwargs[name]
        if bracket:
            value = value[int(index.rstrip("]"))]
        return value, name

    def format_field(self, value: Any, format_spec: str) -> str:
        """Whole numbers without a point, as programs take them, unless a format says otherwise."""
        if not format_spec and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
            value = int(value)
        return super().format_field(value, format_spec)  # type: ignore[no-any-return]


class Template:
    """A command or a path with fields.

    Args:
        text: A line, split as a shell would, or a list of arguments.
        device_batch: Samples of one forward pass; None where the settings do not state it.
        shell: Whether the line goes to a shell as a whole.

    Raises:
        UserError: If a brace or a quote is left open.
    """

    def __init__(self, text: str | Sequence[str], *, device_batch: int | None = None, shell: bool = False) -> None:
        self._shell, self._device_batch = shell, device_batch
        try:
            self._parts = [text] if shell and isinstance(text, str) else shlex.split(text) if isinstance(text, str) else list(text)
            self.fields = [name for part in self._parts for _, name, _, _ in Formatter().parse(part) if name is not None]
        except ValueError as error:
            raise UserError(f"command {text!r:.120}: {error}; a quote or a brace is left open ({{{{ and }}}} stand for braces)") from None
        if not self._parts:
            raise UserError("command: is empty; give the program and its arguments")
        self.fields = [name.partition("[")[0] for name in self.fields]

    def check(self, recipe: Recipe) -> None:
        """Refuse a field that this recipe does not have.

        Raises:
            UserError: Naming the nearest field that there is; or if passes of `device_batch` samples do not add up to the global batch.
        """
        self.fill(recipe, out="", recipe_file="")
        batch, one_pass = recipe.batch.global_batch, self._device_batch
        if one_pass is not None and batch % min(one_pass, batch) and "accumulation" in self.fields and "device_batch" not in self.fields:
            raise UserError(
                f"global_batch = {batch}: is no multiple of device_batch = {one_pass}, of which {{accumulation}} passes would make "
                f"{one_pass * math.ceil(batch / one_pass)} samples; plan for a multiple, or give the script {{device_batch}} too"
            )

    def has_place_for(self, field: str) -> bool:
        """Whether a dotted field of the recipe reaches the command."""
        patterns = [pattern for name in self.fields for pattern in (name, *DERIVED.get(name, ()))]
        if "device_batch" in self.fields and self._device_batch is None:
            patterns.append("batch.global_batch")
        return any(covers(pattern, field) for pattern in patterns)

    def fill(self, recipe: Recipe, *, out: str, recipe_file: str, start: str = "") -> list[str]:
        """The arguments for one run.

        Args:
            recipe: Of the run.
            out: Folder for its files.
            recipe_file: Where the whole recipe is.
            start: The checkpoint that it begins from.

        Raises:
            UserError: If the recipe lacks a field, or a format does not fit its value.
        """
        values = values_of(recipe, self._device_batch) | {"out": out, "recipe": recipe_file, "start": start}
        if self._shell:
            values = {name: _Quoted(value) for name, value in values.items()}
        filled = []
        for part in self._parts:
            try:
                filled.append(_Fields().vformat(part, (), values))
            except KeyError as error:
                raise UserError(self._unknown(str(error.args[0]), values)) from None
            except (ValueError, IndexError, TypeError) as error:
                raise UserError(f"command: {part!r:.120} can't be filled: {error}; correct the format of its field") from None
        return filled

    def _unknown(self, name: str, values: Mapping[str, Any]) -> str:
        if not name or name.isdecimal():
            return "command: {} has no name; name a field, such as {optimizer.lr}, or write {{}} for braces"
        return "command: " + unknown("field", name, sorted(values)) + "; a field that the recipe leaves out is not known: set it there"


class _Quoted:
    """A value that a shell reads as one word."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __format__(self, spec: str) -> str:
        return shlex.quote(_Fields().format_field(self._value, spec))

    def __getitem__(self, index: int) -> "_Quoted":
        return _Quoted(self._value[index])


def values_of(recipe: Recipe, device_batch: int | None) -> dict[str, Any]:
    """The fields of a recipe and what follows from them, by name."""
    values = recipe.to_flat_dict()
    samples = round(recipe.warmup_samples)
    values |= {
        "num_updates": recipe.num_updates,
        "total_samples": recipe.total_samples,
        "epochs": recipe.total_epochs,
        "warmup.samples": samples,
        "warmup.updates": math.ceil(samples / recipe.batch.global_batch),
    }
    if (betas := recipe.get("optimizer.betas")) is not None:
        values |= {"beta1": betas[0], "beta2": betas[1]}
    batch = recipe.batch.global_batch
    one_pass = next(samples for samples in range(min(device_batch or batch, batch), 0, -1) if batch % samples == 0)
    return {**values, "device_batch": one_pass, "accumulation": batch // one_pass}
