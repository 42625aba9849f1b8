"""Which fields of a recipe a function or a command follows, in words: `can = ["lr", "warmup", "weight_decay", "beta2"]`."""

import re
from collections.abc import Collection
from pathlib import Path

from bigbatch.core.checks import UserError, unknown

WORDS = {
    "lr": ("optimizer.lr", "optimizer.adam_lr"),
    "momentum": ("optimizer.momentum", "optimizer.nesterov"),
    "beta1": ("optimizer.betas",),
    "beta2": ("optimizer.betas",),
    "weight_decay": ("optimizer.weight_decay",),
    "clip": ("optimizer.clip_norm",),
    "optimizer": ("optimizer.*",),
    "warmup": ("schedule.warmup.*",),
    "decay": ("schedule.decay.*",),
    "schedule": ("schedule.*",),
    "batch": ("batch.*",),
    "budget": ("budget.*",),
    "model": ("model.*",),
}
"""Word to the dotted fields that it stands for; a dotted field stands for itself, and a section for all below it."""
ALWAYS = ("seed", "batch.global_batch", "batch.micro_batch", "budget.epochs", "budget.samples", "budget.updates", "budget.tokens")
"""What every study changes: a template must have a place for them all the same."""


def check_words(words: Collection[str]) -> None:
    """Refuse words that stand for nothing.

    Raises:
        UserError: Naming the nearest word that is known.
    """
    for word in words:
        if word not in WORDS and "." not in word:
            raise UserError("can: " + unknown("word", word, WORDS) + "; or a dotted field, such as optimizer.eps")


def allows(words: Collection[str], field: str) -> bool:
    """Whether one of the words stands for a dotted field.

    >>> allows(["lr", "warmup"], "schedule.warmup.epochs"), allows(["lr"], "optimizer.momentum")
    (True, False)
    """
    if field in ALWAYS:
        return True
    patterns = [pattern for word in words for pattern in WORDS.get(word, (word, f"{word}.*"))]
    return any(covers(pattern, field) for pattern in patterns)


def covers(pattern: str, field: str) -> bool:
    """Whether a dotted field is the pattern, or below `section.*`.

    >>> covers("optimizer.*", "optimizer.lr"), covers("optimizer.lr", "optimizer.lr"), covers("optimizer.l", "optimizer.lr")
    (True, True, False)
    """
    return field == pattern or (pattern.endswith(".*") and field.startswith(pattern[:-1]))


def files_by_updates(folder: Path, pattern: str) -> dict[int, Path]:
    """Files and folders whose path below a folder fits a pattern with {updates} in it, by that number, in order.

    Raises:
        UserError: If the pattern has no {updates}, or names no path below the folder.
    """
    if pattern.count("{updates}") != 1 or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise UserError(f'checkpoint = {pattern!r}: must be a path with {{updates}} in it once, such as "step-{{updates}}.pt"')
    expression = re.compile(re.escape(pattern).replace(re.escape("{updates}"), r"0*(\d+)"))
    found = {}
    for path in folder.glob(pattern.replace("{updates}", "*")):
        if (match := expression.fullmatch(path.relative_to(folder).as_posix())) is not None:
            found[int(match[1])] = path
    return dict(sorted(found.items()))
