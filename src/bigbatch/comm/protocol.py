"""The interface of every communication method: what happens to gradients before a step, and to weights after it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.optim import Optimizer

from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks
from bigbatch.core.tensors.optimizer_state import load_optimizer_state


class Comm:
    """A single process; subclasses override what several workers do differently.

    Args:
        model: The model that is trained.
        ranks: The workers.

    Attributes:
        forward: The module to call in place of the model while training, such as its DistributedDataParallel wrapper.
        in_warmup_pass: Whether this is a pass of weight zero: its gradients are not compressed, observed or mixed.
        equal_num_passes: Whether every rank must make the same number of forward passes, in evaluation too.
    """

    equal_num_passes = False

    def __init__(self, model: nn.Module, ranks: Ranks = SINGLE_PROCESS) -> None:
        self.model, self.ranks = model, ranks
        self.forward: nn.Module = model
        self.in_warmup_pass = False

    def divisor(self, global_batch: float, local_batch: float) -> float:  # noqa: ARG002
        """The number by which a rank divides each of its losses.

        Args:
            global_batch: Samples of this update, over all ranks; or the sum of their weights.
            local_batch: Samples of this update on this rank; or the sum of their weights.
        """
        return global_batch

    def sync_context(self, last: bool) -> AbstractContextManager[object]:  # noqa: ARG002
        """Context of the forward and backward pass of one micro-batch.

        Args:
            last: Whether it is the last micro-batch of this rank in the update, after which gradients are synchronised.
        """
        return nullcontext()

    def before_step(self, optimizer: Optimizer) -> None:
        """Called before the optimizer's step, once its learning rate is set and gradients are clipped; may change gradients."""

    def after_step(self, optimizer: Optimizer, updates: int) -> None:
        """Called after the optimizer's step.

        Args:
            optimizer: The optimizer.
            updates: Number of updates made so far.
        """

    @contextmanager
    def warmup_pass(self) -> Iterator[None]:
        """Context of a first pass of weight zero, in which DistributedDataParallel learns the order of the gradients."""
        self.in_warmup_pass = True
        try:
            yield
        finally:
            self.in_warmup_pass = False

    def averaged_weights(self, optimizer: Optimizer) -> AbstractContextManager[object]:  # noqa: ARG002
        """Context in which all ranks have the same weights, to evaluate or save them; restores each rank's weights afterwards."""
        return nullcontext()

    def average_weights(self, optimizer: Optimizer) -> None:
        """Called after the last step: give all ranks the same weights permanently."""

    def metrics(self) -> dict[str, float]:
        """Values to record with each evaluation, such as the distance between the ranks' weights; empty if there are none."""
        return {}

    def full_state_dicts(self, optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
        """State dicts of model and optimizer as a single process would have them; all ranks call it, rank 0 uses them."""
        return self.model.state_dict(), optimizer.state_dict()

    def load_full_state_dicts(self, optimizer: Optimizer, model_state: dict[str, Any], optimizer_state: dict[str, Any]) -> None:
        """The inverse of `full_state_dicts`; every rank passes the same state dicts."""
        self.model.load_state_dict(model_state)
        load_optimizer_state(optimizer, optimizer_state)

    def state_dict(self) -> dict[str, Any]:
        """State that belongs to this rank only, such as compression errors; empty if there is none."""
        return {}

    def load_state_dicts(self, states: list[dict[str, Any]]) -> None:
        """Load the states of all ranks that saved, whose number may differ from the current world size."""
