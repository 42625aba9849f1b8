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
from typing import Annotated, Any, Literal, Protocol, Self

import tomli_w
from pydantic import Field, ValidationError, model_validator

from bigbatch.core.checks import InputError, RecipeError, UserError, unknown
from bigbatch.core.methods import COMMS
from bigbatch.core.notebook import Content, Displayed
from bigbatch.core.storage.reading import Malformed, parse_toml, read_text
from bigbatch.recipe.base import Count, Section
from bigbatch.recipe.fields import flat, parts, replaced
from bigbatch.recipe.messages import readable_mistakes
from bigbatch.recipe.optional_sections import Adversarial, Augmentation, Curvature
from bigbatch.recipe.sections import AnyComm, AnyOptimizer, Batch, Budget, Schedule, TimedWarmup

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
    def _sections_fit(self) -> Self:
        """Each section says which others it does not go with."""
        schedule, samples = self.schedule, (self.augmentation, self.adversarial)
        for section in (self.batch, self.comm, schedule.warmup, schedule.decay, self.optimizer, self.curvature, *samples):
            if section is not None:
                section.check_recipe(self)
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
        """Passes over the training set."""
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
        return flat(self.to_dict())

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
        for part in parts(field):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def replace(self, *changes: Mapping[str, Any]) -> Self:
        """A new recipe with dotted fields replaced, by one mapping after the other; None removes a field.

        Setting the warm-up's length in one unit drops it in another. Setting a section's tag (`optimizer.name`, `schedule.warmup.kind`,
        `schedule.decay.kind`) drops the fields that the new kind does not have, and `optimizer.groups` where they are not its own.

        Raises:
            RecipeError: If a field is unknown or the result is impossible.
        """
        fields = self.to_dict()
        for some in changes:
            replaced(fields, some)
        return type(self)(**fields)

    def differences(self, other: "Recipe") -> list[str]:
        """Dotted fields in which two recipes differ, each with both values."""
        mine, theirs = self.to_flat_dict(), other.to_flat_dict()
        return [
            f"{name}: {mine.get(name, 'absent')} here, {theirs.get(name, 'absent')} there"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]


class HasRecipe(Protocol):
    """A plan."""

    @property
    def recipe(self) -> Recipe:
        """What was planned."""
        ...


def recipe_in(given: "Recipe | HasRecipe") -> Recipe:
    """A recipe as it is, and that of a plan.

    Raises:
        UserError: If it is neither.
    """
    found = given if isinstance(given, Recipe) else getattr(given, "recipe", None)
    if not isinstance(found, Recipe):
        raise UserError(f"recipe = {given!r:.80}: must be a Recipe or a plan; Recipe.load reads a file, Recipe.named has those shipped")
    return found


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
