"""What a backward pass of Transformers' `Trainer` adds to the gradient: so many samples, and what their losses were divided by.

The Trainer divides in one of two ways (trainer.py, `training_step`; read in 5.24):

    by items    the loss is a sum over the items (tokens that are predicted, or labels) of the pass, divided by those of the whole update,
                over all processes with `average_tokens_across_devices`, and then multiplied by their number
    by passes   the loss is a mean over the pass, divided by the number of passes
"""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from bigbatch.core.checks import UserError
from bigbatch.core.extras import needed

with needed("the adapter to Transformers", extra="transformers"):
    from accelerate.utils import find_batch_size
    from transformers.loss.loss_utils import ForCausalLMLoss

IGNORED = -100
"""Label of what is not predicted, as everywhere in Transformers."""


class Pass(NamedTuple):
    """For `NoiseScaleMonitor.micro_batch`."""

    num_samples: int  # of this process; 0 where none has a label
    divisor: float  # what the sum of their losses was divided by


def pass_of(trainer: Any, inputs: Mapping[str, Any], num_items: Any) -> Pass:
    """Call it before the pass, which may take labels out of `inputs`. Waits for the device where labels are on one, as the Trainer does.

    Args:
        trainer: A `transformers.Trainer`.
        inputs: Of the pass.
        num_items: As the Trainer counted them for the update; None where it could not.

    Raises:
        UserError: If no input is a tensor with a dimension of samples.
    """
    num_samples = find_batch_size(inputs)
    if num_samples is None:
        raise UserError("inputs without a tensor: the samples of a pass can't be counted; have the data collator return tensors")
    if not is_divided_by_items(trainer, num_items):
        return Pass(num_samples, float(num_samples * trainer.current_gradient_accumulation_steps))
    if num_items is None:  # the user's own loss, which says that it is scaled
        return Pass(num_samples, float(num_samples))
    items = _num_items(trainer, inputs)
    if not items:
        return Pass(0, 1.0)
    sharing = trainer.accelerator.num_processes if trainer.args.average_tokens_across_devices else 1
    return Pass(num_samples, num_samples * float(num_items) / sharing / items)


def is_divided_by_items(trainer: Any, num_items: Any) -> bool:
    """Whether the Trainer takes the loss as divided already, and does not divide it by the number of passes."""
    scaled: bool | None = getattr(trainer, "loss_is_scaled_for_ga", None)  # a subclass may say so
    if scaled is not None:
        return scaled
    return bool(trainer.model_accepts_loss_kwargs and num_items is not None) or trainer.compute_loss_func is not None


def check_loss(trainer: Any, inputs: Mapping[str, Any], num_items: Any, *, may_grow: bool) -> None:
    """Refuse a model that takes the number of items and does not divide by it, as ResNetForImageClassification; warn of a wrong count.

    The Trainer then divides by nothing. One loss is computed twice, without a gradient and in evaluation mode, by N and 2 N items.

    Args:
        trainer: As in `pass_of`.
        inputs: As in `pass_of`.
        num_items: As in `pass_of`.
        may_grow: Whether an update of one pass may have more of them later.

    Raises:
        UserError: With the remedy.
    """
    own_loss = trainer.compute_loss_func is not None or trainer.label_smoother is not None
    num_processes = trainer.accelerator.num_processes if trainer.args.average_tokens_across_devices else 1
    factor = trainer.current_gradient_accumulation_steps * num_processes
    if own_loss or num_items is None or not is_divided_by_items(trainer, num_items):
        return
    if _shifts(trainer) and not _counts_shifted(trainer) and "shift_labels" not in inputs:
        warnings.warn(
            f"{type(trainer.model).__name__}: the Trainer counts the first token of each sequence as predicted, which it is not, and "
            'divides the loss by too much; set model.loss_type = "ForCausalLM" before the Trainer is made',
            stacklevel=2,
        )
    if factor == 1 and not may_grow:
        return
    model, prepared = trainer.model, trainer._prepare_inputs(dict(inputs))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            once, half = (_loss(model(**prepared, num_items_in_batch=k * num_items)) for k in (1, 2))
    finally:
        model.train(was_training)
    if once and abs(once - half) <= 1e-6 * abs(once):
        raise UserError(
            f"{type(model).__name__}: takes num_items_in_batch, and its loss is not divided by it, so the Trainer's gradients are too "
            "large by the number of passes times that of processes; set model.accepts_loss_kwargs = False before the Trainer is made"
        )


def _loss(outputs: Any) -> float:
    return float(outputs["loss"] if isinstance(outputs, Mapping) else outputs[0])


def _num_items(trainer: Any, inputs: Mapping[str, Any]) -> int:
    """Items of one pass that its loss is a sum over."""
    if "shift_labels" in inputs:
        labels = inputs["shift_labels"]
    else:
        labels = inputs["labels"]
        if _counts_shifted(trainer) or _shifts(trainer):
            labels = labels[..., 1:]
    return int(labels.ne(IGNORED).sum())


def _counts_shifted(trainer: Any) -> bool:
    """Whether the Trainer leaves the first label of a sequence out of its count; by the name of the model's loss."""
    return bool(getattr(trainer, "_loss_shifts_labels", False))


def _shifts(trainer: Any) -> bool:
    """Whether the model's loss leaves it out, whatever the loss is called: GPT2LMHeadModel's has no name."""
    config = getattr(trainer.model, "config", None)
    return getattr(trainer.model, "loss_function", None) is ForCausalLMLoss and not getattr(config, "is_encoder_decoder", False)
