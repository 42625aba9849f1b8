"""The recipe: everything that decides what a training run computes, as one frozen, validated value. It builds nothing.

    [optimizer]  update rule and its rates         [batch]   samples per update, per normalisation group, per forward pass
    [schedule]   warm-up, then decay               [model]   options of the task's own model
    [budget]     when the run ends                 [comm]    how several workers go together
    [adversarial], [augmentation]: what else is trained on; neither, if left out
    [curvature]  what is measured on the way; nothing, if left out
    seed, precision

Lengths in epochs of `num_train_samples`, samples or tokens survive a change of batch; those in updates are of the recipe's own batch. Rates
are peak rates.
"""

import copy
import math
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import Field, ValidationError, model_validator

from bigbatch.core.checks import InputError, RecipeError, check_group, unknown
from bigbatch.core.methods import COMMS
from bigbatch.core.notebook import Content, Displayed
from bigbatch.core.storage.reading import Malformed, parse_toml, read_text
from bigbatch.recipe.base import Count, Section
from bigbatch.recipe.messages import readable_mistakes
from bigbatch.recipe.sections import (
    KINDS,
    TAGS,
    WARMUP_UNITS,
    Adversarial,
    AnyComm,
    AnyOptimizer,
    Augmentation,
    Batch,
    Budget,
    Curvature,
    Schedule,
    TimedWarmup,
)

HOW_IT_IS_RUN = ("command", "function")
"""Sections of a settings file (bigbatch.runner.settings_file) beside the recipe's own."""


class Recipe(Displayed, Section):
    """A training run, described. See the module's docstring for the sections.

    Raises:
        RecipeError: On unknown or impossible fields, naming each with its value and the rule.

    >>> recipe = Recipe.named("digits/mlp")
    >>> recipe.batch.global_batch, recipe.replace({"optimizer.lr": 0.5}).optimizer.lr
    (32, 0.5)
    >>> Recipe.from_toml(recipe.to_toml()) == recipe
    True
    """

    task: str = ""  # name of the task that it was tuned on; empty for your own loop
    num_train_samples: Count  # samples in one epoch
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # initial weights, data order, dropout
    precision: Literal["float32", "bfloat16", "float64"] = "float32"  # bfloat16: autocast over float32 weights
    optimizer: AnyOptimizer
    schedule: Schedule = Field(default_factory=Schedule)
    batch: Batch
    model: dict[str, bool | int | float | str] = Field(default_factory=dict)
    budget: Budget
    comm: AnyComm = Field(default_factory=lambda: COMMS["all_reduce"].section())
    adversarial: Adversarial | None = None
    augmentation: Augmentation | None = None
    curvature: Curvature | None = None

    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise RecipeError(readable_mistakes(error, type(self))) from None

    @model_validator(mode="after")
    def _batch_fits(self) -> Self:
        batch = self.batch
        if batch.global_batch > self.num_train_samples:
            raise ValueError(
                f"batch.global_batch = {batch.global_batch:,}: is larger than the training set of {self.num_train_samples:,} samples; "
                "choose a batch that fits into it"
            )
        if batch.rule is not None:
            batch.rule.check_recipe(self)
        if batch.noise_batch is not None and batch.noise_batch >= batch.global_batch:
            raise ValueError(
                f"batch.noise_batch = {batch.noise_batch}: must be smaller than global_batch = {batch.global_batch}, whose gradient is no "
                "noisier than that of so many samples; leave it out"
            )
        if isinstance(batch.ghost_batch, int):
            check_group("batch.ghost_batch", batch.ghost_batch)
            if batch.ghost_batch > batch.global_batch:
                raise ValueError(
                    f"batch.ghost_batch = {batch.ghost_batch}: is larger than global_batch = {batch.global_batch}; lower ghost_batch"
                )
            if isinstance(batch.micro_batch, int) and batch.micro_batch % batch.ghost_batch:
                raise ValueError(
                    f"batch.micro_batch = {batch.micro_batch}: must be a multiple of ghost_batch = {batch.ghost_batch}, or a forward "
                    'pass would cut a normalisation group in two; choose a multiple or "auto"'
                )
        if batch.ghost_batch == "global" and isinstance(batch.micro_batch, int) and batch.micro_batch < batch.global_batch:
            raise ValueError(
                f'batch.micro_batch = {batch.micro_batch}: batch norm over the "global" batch needs it in one forward pass; '
                'set ghost_batch to a number or micro_batch to "auto"'
            )
        return self

    @model_validator(mode="after")
    def _comm_fits(self) -> Self:
        comm = self.comm
        comm.check_recipe(self)
        if comm.label_skew and self.batch.rule is not None:
            raise ValueError(
                f"comm.label_skew = {comm.label_skew:g}: each worker has samples of its own, of which a batch that changes would not take "
                "the same share; leave out batch.rule"
            )
        return self

    @model_validator(mode="after")
    def _methods_fit(self) -> Self:
        for section in (self.schedule.warmup, self.schedule.decay, self.optimizer):
            section.check_recipe(self)
        return self

    @model_validator(mode="after")
    def _curvature_fits(self) -> Self:
        kind = self.comm.kind
        if self.curvature is not None and kind in ("parameter_server", "fully_shard"):
            raise ValueError(
                f'[curvature] with comm.kind = "{kind}": needs whole weights on every worker; set comm.kind = "all_reduce", or look at the '
                "run's checkpoints by `bigbatch curvature`"
            )
        return self

    @model_validator(mode="after")
    def _samples_fit(self) -> Self:
        comm = self.comm
        if self.augmentation is not None and comm.kind == "parameter_server":
            raise ValueError(
                '[augmentation] with comm.kind = "parameter_server": its workers read plain samples; use another, or leave it out'
            )
        if self.adversarial is None:
            return self
        if comm.kind != "all_reduce":
            raise ValueError(
                f'[adversarial] with comm.kind = "{comm.kind}": examples are made from the weights of an update, which are one set only '
                'with "all_reduce"; use that, or leave [adversarial] out'
            )
        if getattr(comm, "compression", None) is not None and self.adversarial.makers == "ranks":
            raise ValueError(
                'comm.compression with adversarial.makers = "ranks": compresses among all workers, of which half have no gradient; leave '
                "one of them out"
            )
        if self.batch.noise_batch is not None:
            raise ValueError(f"batch.noise_batch = {self.batch.noise_batch} with [adversarial]: both weigh losses; leave one of them out")
        if self.batch.rule is not None:
            raise ValueError(
                f'batch.rule.kind = "{self.batch.rule.kind}" with [adversarial]: examples are made before their update, when its batch '
                "must be known; leave one of them out"
            )
        return self

    @property
    def total_samples(self) -> int:
        """Training samples that the run consumes; every sample of a batch counts."""
        budget = self.budget
        if budget.updates is not None:
            return budget.updates * self.batch.global_batch
        if budget.samples is not None:
            return budget.samples
        if budget.tokens is not None:
            return max(1, round(budget.tokens / (budget.tokens_per_sample or 1)))
        return max(1, round((budget.epochs or 0) * self.num_train_samples))

    @property
    def warmup_samples(self) -> float:
        """Samples of the warm-up, updates counted at the recipe's own batch; 0 without one, and for AutoWU, which finds its length."""
        warmup = self.schedule.warmup
        if not isinstance(warmup, TimedWarmup):
            return 0.0
        if warmup.updates is not None:
            return float(warmup.updates * self.batch.global_batch)
        return float(warmup.samples) if warmup.samples is not None else (warmup.epochs or 0.0) * self.num_train_samples

    @property
    def warmup_epochs(self) -> float:
        """The warm-up in epochs, whatever its unit."""
        warmup = self.schedule.warmup
        if isinstance(warmup, TimedWarmup) and warmup.epochs is not None:
            return warmup.epochs
        return self.warmup_samples / self.num_train_samples

    @property
    def num_updates(self) -> int:
        """Optimizer updates at the recipe's own batch; the last one may be of a short batch."""
        return math.ceil(self.total_samples / self.batch.global_batch)

    @property
    def total_epochs(self) -> float:
        """UpdateBatches over the training set."""
        return self.total_samples / self.num_train_samples

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Build from nested plain values."""
        return cls(**fields)

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Build from TOML text.

        Raises:
            RecipeError: If the text is not TOML, or not a recipe.
        """
        return cls(**_parse(text))

    @classmethod
    def from_saved(cls, saved: str | Mapping[str, Any]) -> Self:
        """Read what a run or a study saved, as TOML text or as nested plain values.

        Files from before `schedule.combine` meant "product", so they are read so where that makes a difference.

        Raises:
            RecipeError: If the text is not TOML, or it is not a recipe.
        """
        fields: dict[str, Any] = copy.deepcopy(dict(_parse(saved) if isinstance(saved, str) else saved))
        schedule = fields.get("schedule")
        if isinstance(schedule, dict) and "combine" not in schedule:
            kinds = [part.get("kind") if isinstance(part := schedule.get(name), dict) else None for name in ("warmup", "decay")]
            warms, falls = kinds[0] in ("gradual", "constant"), kinds[1] in ("polynomial", "cosine", "linear")
            schedule["combine"] = "product" if warms and falls else "sequential"
        return cls(**fields)

    @classmethod
    def load(cls, path: str | Path, *, saved: bool = False) -> Self:
        """Read a TOML file; what it says of how the recipe is run (`HOW_IT_IS_RUN`) is left out.

        Args:
            path: Of the file.
            saved: Whether a run saved it, see `from_saved`.

        Raises:
            RecipeError: If it can't be read, or is no recipe.
        """
        try:
            text = read_text(Path(path), "check the path")
            fields = {name: value for name, value in _parse(text).items() if name not in HOW_IT_IS_RUN}
            return cls.from_saved(fields) if saved else cls.from_dict(fields)
        except InputError as error:
            raise RecipeError(f"recipe {error}") from None
        except RecipeError as error:
            raise RecipeError(f"recipe {path}: {error}") from None

    @classmethod
    def named(cls, name: str) -> Self:
        """The recipe that was tuned for a shipped task, by its name, or one of its others, such as "text/gpt-muon".

        studies/reference_recipes holds how it was tuned, and what it reaches.

        Raises:
            RecipeError: If no recipe of that name is shipped.
        """
        file = files("bigbatch.recipe") / "named" / f"{name}.toml"
        if name not in recipe_names():
            raise RecipeError(unknown("recipe", name, recipe_names()))
        return cls.from_toml(file.read_text())

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, without the fields that are None."""
        return self.model_dump(exclude_none=True)

    def to_flat_dict(self) -> dict[str, Any]:
        """Dotted fields with their values, without the fields that are None.

        >>> Recipe.named("digits/mlp").to_flat_dict()["batch.global_batch"]
        32
        """
        return _flat(self.to_dict())

    def to_toml(self) -> str:
        """TOML text from which `from_toml` gives this recipe back."""
        return tomli_w.dumps(self.to_dict())

    def shown(self) -> Content:
        """What a notebook shows: the optimizer, batch and length in words, and all fields."""
        rates = ", ".join(f"{name} {getattr(self.optimizer, name):g}" for name in self.optimizer.rates)
        words = f"{self.task or 'own loop'}: {self.optimizer.name}, {rates}, global batch {self.batch.global_batch:,}"
        length = f"{self.total_epochs:.3g} epochs = {self.num_updates:,} updates, seed {self.seed}"
        return Content([f"{words}, {length}"], ["field", "value"], list(self.to_flat_dict().items()))

    __str__ = Displayed.__repr__

    def get(self, field: str) -> Any:
        """Value of a dotted field such as "optimizer.lr"; None where it is absent.

        >>> Recipe.named("digits/mlp").get("batch.global_batch")
        32
        """
        value: Any = self.to_dict()
        for part in _parts(field):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def replace(self, changes: Mapping[str, Any]) -> Self:
        """A new recipe with dotted fields replaced; None removes a field.

        Setting the warm-up's length in one unit drops it in another. Setting a section's tag (`optimizer.name`, `schedule.warmup.kind`,
        `schedule.decay.kind`) drops the fields that the new kind does not have, and `optimizer.groups` where they are not its own.

        Raises:
            RecipeError: If a field is unknown or the result is impossible.
        """
        fields = self.to_dict()
        for field, value in changes.items():
            *sections, last = _parts(field)
            target = fields
            for section in sections:
                target = target.setdefault(section, {})
                if not isinstance(target, dict):
                    raise RecipeError(f"{field}: {section!r} is a value, not a section; set it without going deeper")
            if value is None:
                target.pop(last, None)
            else:
                target[last] = copy.deepcopy(value)  # a later change may go into it
        _drop_other_units_of_warmup(fields, changes)
        for section, tag in TAGS.items():
            kind = changes.get(f"{section}.{tag}")
            if isinstance(kind, str) and kind in KINDS[section]:
                _drop_fields_of_other_kinds(fields, section, kind, keep=set(changes))
        return type(self)(**fields)

    def differences(self, other: "Recipe") -> list[str]:
        """Dotted fields in which two recipes differ, each with both values."""
        mine, theirs = self.to_flat_dict(), other.to_flat_dict()
        return [
            f"{name}: {mine.get(name, 'absent')} here, {theirs.get(name, 'absent')} there"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]


def recipe_names() -> list[str]:
    """Names of the shipped recipes: every shipped task's own, and those tuned with another optimizer, such as "text/gpt-muon"."""
    folder = files("bigbatch.recipe") / "named"
    return sorted(
        f"{family.name}/{file.name.removesuffix('.toml')}"
        for family in folder.iterdir()
        if family.is_dir()
        for file in family.iterdir()
        if file.name.endswith(".toml")
    )


def _parse(text: str) -> dict[str, Any]:
    try:
        return parse_toml(text)
    except Malformed as error:
        raise RecipeError(f"{error}; `bigbatch init` writes one to start from") from None


def _parts(field: str) -> list[str]:
    """A dotted field by section; what follows "optimizer.groups." is one pattern, dots and all."""
    head, groups, pattern = field.partition("optimizer.groups.")
    return ["optimizer", "groups", pattern] if groups and not head else field.split(".")


def _drop_fields_of_other_kinds(fields: dict[str, Any], section: str, kind: str, keep: set[str]) -> None:
    target: Any = fields
    for part in section.split("."):
        target = target.get(part) if isinstance(target, dict) else None
    if not isinstance(target, dict):
        return  # which is refused later
    of_kind = KINDS[section][kind].section
    for name in [n for n in target if n not in of_kind.model_fields and f"{section}.{n}" not in keep]:
        del target[name]
    groups = target.get("groups")
    if section == "optimizer" and isinstance(groups, dict) and groups and not _sets_groups(keep):
        by = "muon" if all(group in ("muon", "adam") for group in groups.values()) else "decay"
        if by != of_kind.groups_by:
            del target["groups"]  # they are another optimizer's


def _drop_other_units_of_warmup(fields: dict[str, Any], changes: Mapping[str, Any]) -> None:
    lengths = {unit: changes.get(f"schedule.warmup.{unit}") for unit in WARMUP_UNITS}
    schedule = fields.get("schedule")
    warmup = schedule.get("warmup") if isinstance(schedule, dict) else None
    if isinstance(warmup, dict) and any(value is not None for value in lengths.values()):
        for unit, value in lengths.items():
            if value is None:
                warmup.pop(unit, None)


def _sets_groups(changes: set[str]) -> bool:
    return any(field.startswith("optimizer.groups") for field in changes)


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
