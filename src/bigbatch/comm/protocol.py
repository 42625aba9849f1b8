"""What every way of working together answers: what happens to gradients before a step, and what happens to weights after it?"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.optim import Optimizer

from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks
from bigbatch.core.optimizer_state import load_optimizer_state


class Comm:
    """One worker alone; the ways of several workers change what they must.

    Args:
        model: Whose gradients and weights are meant.
        ranks: The workers.

    Attributes:
        forward: What to call instead of the model while training.
        in_warmup_pass: Whether passes weigh nothing now: what they would exchange is not to be compressed, observed or mixed in.
        equal_num_passes: Whether every worker must make as many forward passes as the others, in evaluation too.
    """

    equal_num_passes = False

    def __init__(self, model: nn.Module, ranks: Ranks = SINGLE_PROCESS) -> None:
        self.model, self.ranks = model, ranks
        self.forward: nn.Module = model
        self.in_warmup_pass = False

    def divisor(self, num_samples: int, own_samples: int) -> float:  # noqa: ARG002
        """What a worker divides each of its losses by.

        Args:
            num_samples: Of the update, over all workers.
            own_samples: Of this worker's share.
        """
        return num_samples

    def sync_context(self, last: bool) -> AbstractContextManager[object]:  # noqa: ARG002
        """Around the forward and backward pass of each micro-batch; `last`: of this worker's share of the update."""
        return nullcontext()

    def before_step(self, optimizer: Optimizer) -> None:
        """Before the optimizer's step, its rate set and gradients clipped; may change gradients."""

    def after_step(self, optimizer: Optimizer, updates: int) -> None:
        """After the optimizer's step; `updates` is the number of updates made so far."""

    @contextmanager
    def warmup_pass(self) -> Iterator[None]:
        """Around a first pass that weighs nothing, which settles in which order gradients are sent."""
        self.in_warmup_pass = True
        try:
            yield
        finally:
            self.in_warmup_pass = False

    def averaged_weights(self, optimizer: Optimizer) -> AbstractContextManager[object]:  # noqa: ARG002
        """While weights are evaluated or saved: the same everywhere, and afterwards as they were."""
        return nullcontext()

    def average_weights(self, optimizer: Optimizer) -> None:
        """After the last step: make weights the same everywhere, for good."""

    def metrics(self) -> dict[str, float]:
        """What is worth recording with each evaluation, such as how far apart workers are; empty if nothing."""
        return {}

    def full_state_dicts(self, optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
        """State of model and optimizer as one worker alone would have it; called by all, used by the first."""
        return self.model.state_dict(), optimizer.state_dict()

    def load_full_state_dicts(self, optimizer: Optimizer, model_state: dict[str, Any], optimizer_state: dict[str, Any]) -> None:
        """The inverse of `full_state_dicts`; every worker has the states."""
        self.model.load_state_dict(model_state)
        load_optimizer_state(optimizer, optimizer_state)

    def state_dict(self) -> dict[str, Any]:
        """What this worker alone knows, such as compression errors; empty if nothing."""
        return {}

    def load_state_dicts(self, states: list[dict[str, Any]]) -> None:
        """Take up the states of the workers that saved, of which there may have been more or fewer."""
