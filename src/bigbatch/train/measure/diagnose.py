"""Is it the data? Checked before a run where it is cheap, and after a divergence where it is not."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from bigbatch.core.checks import DataError, Diverged
from bigbatch.core.clock import Clock
from bigbatch.core.tensors.sharding import local
from bigbatch.core.tensors.structure import tensors_of
from bigbatch.recipe import Recipe
from bigbatch.train.data.sampler import sample_indices
from bigbatch.train.data.stream_reader import is_stream


def check_finite(name: str, dataset: Dataset[Any]) -> None:
    """Refuse an in-memory data set whose inputs hold NaN or infinity; other data sets would have to be read whole, and are not.

    Raises:
        DataError: Saying how many samples are affected and which is the first.
    """
    if isinstance(dataset, TensorDataset):
        tensors = dataset.tensors
        for inputs in tensors[:1] if len(tensors) == 2 else tensors:
            bad = _not_finite(inputs)
            if len(bad):
                raise DataError(
                    f"{name} inputs: {len(bad):,} of {len(dataset):,} samples hold NaN or infinity, the first is sample {bad[0]}; "
                    "clean or drop them"
                )


def explain_divergence(error: Diverged, recipe: Recipe, train: Dataset[Any], folder: Path | None) -> str:
    """The error's message with what is to blame, as far as the data tells, and a remedy."""
    kept = f"; the record and the last good checkpoint are in {folder}" if folder is not None else ""
    if (samples := _samples_of(error, recipe)) is not None and not isinstance(train, TensorDataset) and not is_stream(train):
        start, end = samples
        indices = sample_indices(recipe.seed, recipe.num_train_samples, start, end - start).tolist()
        bad = [i for i in indices if any(len(_not_finite(t[None])) for t in _inputs_of(train[i]))]
        if bad:
            return f"{error}; the inputs themselves hold NaN or infinity, first in training sample {bad[0]}: clean or drop it{kept}"
    remedy = "lower the rate, lengthen the warm-up, or try another rule"
    if error.update == 1 and error.samples is not None:
        remedy = "these are the initial weights, so it is not the rate: look at the data, the losses, and how the model begins"
    if recipe.get("schedule.warmup.return_to_minimum") is False:
        remedy = "lower the peak rate, or set schedule.warmup.return_to_minimum = true to go on from weights of the warm-up"
    return f"{error}; {remedy}{kept}"


def _samples_of(error: Diverged, recipe: Recipe) -> tuple[int, int] | None:
    """Samples of the update at which the run diverged, as far as they are known."""
    if error.samples is not None or error.update is None or recipe.batch.rule is not None:
        return error.samples
    start = (error.update - 1) * recipe.batch.global_batch
    return start, min(start + recipe.batch.global_batch, recipe.total_samples)


def _inputs_of(item: Any) -> list[Tensor]:
    """Tensors that a sample's inputs are made of; of an item that is no pair, all."""
    inputs = item[0] if isinstance(item, tuple | list) and len(item) == 2 else item
    with suppress(TypeError, ValueError, RuntimeError):  # plain numbers and arrays; anything else is left to the task
        return list(tensors_of(inputs)) or [torch.as_tensor(inputs)]
    return []


def _not_finite(inputs: Tensor) -> list[int]:
    if not inputs.is_floating_point():
        return []
    return [int(i) for i in (~torch.isfinite(inputs).flatten(1).all(1)).nonzero().flatten()]


def check_weights(model: nn.Module, clock: Clock) -> None:
    """Never save weights that are no longer finite: the last good checkpoint must stay good."""
    for name, p in model.named_parameters():
        if not bool(torch.isfinite(local(p)).all()):
            raise Diverged(f"weights {name} are no longer finite after update {clock.updates}", update=clock.updates)
