"""The recipe: everything that decides what a training run computes, as one frozen, validated value. It builds nothing.

    [optimizer]  update rule and its rates         [batch]   samples per update, per normalisation group, per forward pass
    [schedule]   warm-up times decay               [model]   options of the task's own model
    [budget]     when the run ends                 seed, precision

Lengths are in epochs of `num_train_samples`, so they survive a change of batch; rates are peak rates.
"""

import math
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bigbatch.core.checks import RecipeError, unknown

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Optimizer(_Section):
    lr: Positive  # peak learning rate
    weight_decay: NotNegative = 0.0  # in the optimizer's own unit
    decay_norms_and_biases: bool = True  # torch's habit; Goyal et al. switch it off
    clip_norm: Positive | None = None  # bound on the global norm of the mean gradient of an update


class SGD(_Optimizer):
    """torch.optim.SGD: the rate stays outside the momentum buffer."""

    name: Literal["sgd"] = "sgd"
    momentum: Momentum = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov = true needs momentum > 0")
        return self


class Adam(_Optimizer):
    """torch.optim.Adam: weight decay is added to the gradient."""

    name: Literal["adam"] = "adam"
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    eps: Positive = 1e-8


class AdamW(_Optimizer):
    """torch.optim.AdamW: weight decay is applied to the weights, times the rate."""

    name: Literal["adamw"] = "adamw"
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    eps: Positive = 1e-8


class NoWarmup(_Section):
    """Start at the peak rate."""

    kind: Literal["none"] = "none"


class GradualWarmup(_Section):
    """Straight line from `start_factor` times the peak rate to the peak rate."""

    kind: Literal["gradual"] = "gradual"
    epochs: NotNegative
    start_factor: Fraction = 0.0


class ConstantWarmup(_Section):
    """`factor` times the peak rate, then a jump to it."""

    kind: Literal["constant"] = "constant"
    epochs: NotNegative
    factor: Fraction


class ConstantDecay(_Section):
    """The peak rate throughout."""

    kind: Literal["constant"] = "constant"


class StepDecay(_Section):
    """Times `factor` at each milestone."""

    kind: Literal["step"] = "step"
    milestones: Annotated[tuple[Positive, ...], Field(min_length=1)]  # epochs
    factor: Fraction = 0.1

    @model_validator(mode="after")
    def _milestones_ascend(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones = {list(self.milestones)} must ascend; sort them")
        return self


class PolynomialDecay(_Section):
    """(1 - t/T)^power over the whole run, down to `final_factor`."""

    kind: Literal["polynomial"] = "polynomial"
    power: Positive = 2.0
    final_factor: Fraction = 0.0


class CosineDecay(_Section):
    """Half a cosine over the whole run, down to `final_factor`."""

    kind: Literal["cosine"] = "cosine"
    final_factor: Fraction = 0.0


class LinearDecay(_Section):
    """Straight line over the whole run, down to `final_factor`."""

    kind: Literal["linear"] = "linear"
    final_factor: Fraction = 0.0


class Schedule(_Section):
    """Learning rate = optimizer.lr x warmup x decay, both pure functions of the samples consumed."""

    warmup: Annotated[NoWarmup | GradualWarmup | ConstantWarmup, Field(discriminator="kind")] = NoWarmup()
    decay: Annotated[ConstantDecay | StepDecay | PolynomialDecay | CosineDecay | LinearDecay, Field(discriminator="kind")] = ConstantDecay()


class Batch(_Section):
    """How many samples go together, and for what."""

    global_batch: Count  # one update, over all workers
    ghost_batch: Count | Literal["global"] | None = None  # one normalisation group; None: the model has no batch norm
    micro_batch: Count | Literal["auto"] = "auto"  # one forward pass; "auto" measures the fastest; never changes the update


class Budget(_Section):
    """Length of the run, in exactly one unit."""

    epochs: Positive | None = None
    samples: Count | None = None
    updates: Count | None = None

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        given = [name for name in ("epochs", "samples", "updates") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of epochs, samples, updates; got {' and '.join(given) or 'none'}")
        return self


class Recipe(_Section):
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
    seed: Annotated[int, Field(ge=0)] = 0  # initial weights, data order, dropout
    precision: Literal["float32", "bfloat16", "float64"] = "float32"  # bfloat16: autocast over float32 weights
    optimizer: Annotated[SGD | Adam | AdamW, Field(discriminator="name")]
    schedule: Schedule = Schedule()
    batch: Batch
    model: dict[str, bool | int | float | str] = {}
    budget: Budget

    _tags: ClassVar[dict[str, str]] = {"optimizer": "name", "schedule.warmup": "kind", "schedule.decay": "kind"}

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise RecipeError(_readable(error)) from None

    @model_validator(mode="after")
    def _batch_fits(self) -> Self:
        batch = self.batch
        if batch.global_batch > self.num_train_samples:
            raise ValueError(
                f"batch.global_batch = {batch.global_batch:,}: is larger than the training set of {self.num_train_samples:,} samples; "
                "choose a batch that fits into it"
            )
        if isinstance(batch.ghost_batch, int):
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

    @property
    def total_samples(self) -> int:
        """Training samples that the run consumes; every sample of a batch counts."""
        budget = self.budget
        if budget.updates is not None:
            return budget.updates * self.batch.global_batch
        if budget.samples is not None:
            return budget.samples
        return max(1, round((budget.epochs or 0) * self.num_train_samples))

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
        try:
            return cls(**tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"not TOML: {error}; `bigbatch plan TASK --global-batch N` writes a recipe to start from") from None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a TOML file.

        Raises:
            RecipeError: If it can't be read, or is no recipe.
        """
        try:
            return cls.from_toml(Path(path).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {path}: can't be read: {error}; check the path") from None
        except RecipeError as error:
            raise RecipeError(f"recipe {path}: {error}") from None

    @classmethod
    def named(cls, task: str) -> Self:
        """The recipe that was tuned for a shipped task; its file says how.

        Raises:
            RecipeError: If no recipe of that name is shipped.
        """
        file = files("bigbatch.recipe") / "named" / f"{task}.toml"
        if task not in recipe_names():
            raise RecipeError(unknown("recipe", task, recipe_names()))
        return cls.from_toml(file.read_text())

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, without the fields that are None."""
        return self.model_dump(exclude_none=True)

    def to_toml(self) -> str:
        """TOML text from which `from_toml` gives this recipe back."""
        return tomli_w.dumps(self.to_dict())

    def get(self, field: str) -> Any:
        """Value of a dotted field such as "optimizer.lr"; None where it is absent.

        >>> Recipe.named("digits/mlp").get("batch.global_batch")
        32
        """
        value: Any = self.to_dict()
        for part in field.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def replace(self, changes: Mapping[str, Any]) -> Self:
        """A new recipe with dotted fields replaced; None removes a field.

        Setting a section's tag (`optimizer.name`, `schedule.warmup.kind`, `schedule.decay.kind`) drops the fields that the new kind
        does not have.

        Raises:
            RecipeError: If a field is unknown or the result is impossible.
        """
        fields = self.to_dict()
        for field, value in changes.items():
            *sections, last = field.split(".")
            target = fields
            for section in sections:
                target = target.setdefault(section, {})
                if not isinstance(target, dict):
                    raise RecipeError(f"{field}: {section!r} is a value, not a section; set it without going deeper")
            if value is None:
                target.pop(last, None)
            else:
                target[last] = value
        for section, tag in self._tags.items():
            if f"{section}.{tag}" in changes:
                _drop_fields_of_other_kinds(fields, section, tag, keep=set(changes))
        return type(self)(**fields)

    def differences(self, other: "Recipe") -> list[str]:
        """Dotted fields in which two recipes differ, each with both values."""
        mine, theirs = _flat(self.to_dict()), _flat(other.to_dict())
        return [
            f"{name}: {mine.get(name, 'absent')} here, {theirs.get(name, 'absent')} there"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]


_KINDS: dict[str, dict[str, type[_Section]]] = {
    "optimizer": {"sgd": SGD, "adam": Adam, "adamw": AdamW},
    "schedule.warmup": {"none": NoWarmup, "gradual": GradualWarmup, "constant": ConstantWarmup},
    "schedule.decay": {
        "constant": ConstantDecay,
        "step": StepDecay,
        "polynomial": PolynomialDecay,
        "cosine": CosineDecay,
        "linear": LinearDecay,
    },
}

_EITHER = {  # fields that are a number or a word: pydantic reports each alternative, a reader wants one rule
    "batch.ghost_batch": "must be a whole number above zero, or 'global'",
    "batch.micro_batch": "must be a whole number above zero, or 'auto'",
}


def recipe_names() -> list[str]:
    """Names of the shipped recipes, one for every shipped task."""
    folder = files("bigbatch.recipe") / "named"
    return sorted(
        f"{family.name}/{file.name.removesuffix('.toml')}"
        for family in folder.iterdir()
        if family.is_dir()
        for file in family.iterdir()
        if file.name.endswith(".toml")
    )


def _drop_fields_of_other_kinds(fields: dict[str, Any], section: str, tag: str, keep: set[str]) -> None:
    target: Any = fields
    for part in section.split("."):
        target = target[part]
    kind = _KINDS[section].get(target[tag])
    if kind is not None:
        for name in [n for n in target if n not in kind.model_fields and f"{section}.{n}" not in keep]:
            del target[name]


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _readable(error: ValidationError) -> str:
    """One line per mistake: field, value, rule, and for unknown fields the known ones."""
    lines = []
    for mistake in error.errors():
        place = [str(part) for part in mistake["loc"]]
        field = ".".join(p for i, p in enumerate(place) if not _is_tag(place[:i], p))
        either = next((name for name in _EITHER if field.startswith(name)), None)
        if either is not None:
            lines.append(f"{either} = {mistake['input']!r}: {_EITHER[either]}")
            continue
        match mistake["type"]:
            case "extra_forbidden":
                lines.append(unknown("field", field, _known_fields(place[:-1])))
            case "missing":
                lines.append(f"{field}: is missing; give it")
            case "union_tag_not_found":
                lines.append(f"{field}: needs {str(mistake['ctx']['discriminator']).strip(chr(39))}; one of {_tags_of(field)}")
            case "union_tag_invalid":
                ctx = mistake["ctx"]
                lines.append(f"{field}.{ctx['discriminator'].strip(chr(39))} = {ctx['tag']!r}: must be one of {_tags_of(field)}")
            case "value_error":
                text = str(mistake["ctx"]["error"])
                lines.append(f"{field}: {text}" if field else text)
            case _:
                lines.append(f"{field} = {mistake['input']!r}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}")
    return "; ".join(dict.fromkeys(lines))


def _is_tag(before: list[str], part: str) -> bool:
    return part in _KINDS.get(".".join(before), {})


def _tags_of(section: str) -> str:
    return ", ".join(_KINDS.get(section, {}))


def _known_fields(place: list[str]) -> list[str]:
    section = ".".join(p for i, p in enumerate(place) if not _is_tag(place[:i], p))
    tag = place[-1] if place else ""
    if section in _KINDS:
        return list(_KINDS[section][tag].model_fields)
    plain: dict[str, type[_Section]] = {"": Recipe, "schedule": Schedule, "batch": Batch, "budget": Budget}
    return list(plain[section].model_fields) if section in plain else []
