"""Errors that a user can mend, each saying the value, the rule and the remedy, in that order."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something that the user can mend. The command line prints it as one line and exits with code 2."""


class RecipeError(UserError):
    """A recipe is impossible, or does not fit the task or the checkpoint."""


class DataError(UserError):
    """A data set is missing, damaged or unusable."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class NotFinite(UserError):
    """A loss, or a derivative of it, is not finite at the weights and samples that were given."""


class InputError(UserError):
    """A file can't be read, or does not hold what it should."""


class OutputError(UserError):
    """An output file or folder can't be written."""


class Elsewhere(UserError):
    """A mistake that every worker knows of; the command line lets the first say it."""


class RunFailed(UserError):
    """A function or a command that was to run a recipe failed, or told no score."""


class LostWorkers(RuntimeError):
    """Other workers died or fell silent. Exit code 4; a launcher says which, and may start the group anew."""


class Diverged(RuntimeError):
    """The loss, or what it made of the weights, is no longer finite. The command line exits with code 3.

    Attributes:
        update: Number of the update at which it was seen, from 1; None where that is not known.
        samples: Of the run, that this update was of: from number, to number; None where that is not known.
    """

    def __init__(self, message: str, *, update: int | None = None, samples: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.update, self.samples = update, samples


class Interrupted(RuntimeError):
    """The run was stopped from outside, by one of the signals in `core.signals`, and has saved its state. Exit code 130."""


def check_positive(name: str, value: float, remedy: str = "give a value above zero") -> None:
    """Refuse zero, negative and non-finite values.

    Raises:
        UserError: If `value` is not a finite number above zero.

    >>> check_positive("global_batch", 0)
    Traceback (most recent call last):
    bigbatch.core.checks.UserError: global_batch = 0: must be a finite number above zero; give a value above zero
    """
    if isinstance(value, str) or not 0 < value < float("inf"):
        raise UserError(f"{name} = {value!r}: must be a finite number above zero; {remedy}")


def check_fraction(name: str, value: float, remedy: str = "give a value from 0 to 1") -> None:
    """Refuse values outside [0, 1].

    Raises:
        UserError: If `value` is not in [0, 1].
    """
    if not 0 <= value <= 1:
        raise UserError(f"{name} = {value}: must lie from 0 to 1; {remedy}")


def check_group(name: str, samples: int) -> None:
    """Refuse a normalisation group of one sample.

    Raises:
        UserError: If `samples` is below 2.
    """
    if samples < 2:
        raise UserError(
            f"{name} = {samples}: must be 2 or more, since a group of one sample has no variance over samples; give the batch that the "
            "model was tuned at, say 32 to 128"
        )


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Message for an unknown name: what was given, the known name nearest to it (or to its last dotted part), all known names.

    >>> unknown("rule", "linaer", ["linear", "sqrt"])
    "unknown rule 'linaer': did you mean 'linear'? known: linear, sqrt"
    """
    names = list(known)
    near = difflib.get_close_matches(name.rpartition(".")[2], names, n=1) or difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {name!r}: {hint}known: {', '.join(names) or 'none'}"
