"""Whether gradients were written between the last backward pass and the moment at which they are measured."""

from collections.abc import Mapping

from torch import nn

from bigbatch.core.checks import UserError

Mark = tuple[int, int] | None


def mark(p: nn.Parameter) -> Mark:
    """Which tensor the gradient is, and how often it was written; None for no gradient. Does not look at values."""
    return None if p.grad is None else (id(p.grad), p.grad._version)


def check_unchanged(named: Mapping[str, nn.Parameter], left: list[Mark]) -> None:
    """Refuse gradients that are not as they were left.

    Args:
        named: Parameters by name.
        left: `mark` of each after the last pass.

    Raises:
        UserError: Naming the first that differs.
    """
    for (name, p), before in zip(named.items(), left, strict=True):
        if mark(p) != before:
            raise UserError(
                f"the gradient of {name!r} was changed between micro_batch() and update(): the whole gradient is no longer the sum "
                "of its passes, and the noise scale would be wrong; call update() right after the last backward(), before clipping, "
                "unscale_, averaging and zero_grad (with Transformers' Trainer: not in on_pre_optimizer_step, which comes after "
                "clipping)"
            )
