"""Loss and metric of a classification task, and how its data is split and checked."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from bigbatch.tasks.task import Splits


def cross_entropy_per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits (n, classes) against class indices (n,), in at least float32; shape (n,)."""
    return F.cross_entropy(outputs.to(torch.promote_types(outputs.dtype, torch.float32)), targets, reduction="none")


def is_correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest logit is the target's, else 0; shape (n,)."""
    return (outputs.argmax(1) == targets).float()


def standardise(images: Tensor, *, mean: float, std: float) -> Tensor:
    """Bytes 0..255 of shape (n, height, width) to float32 (n, 1, height, width) with the given mean and deviation taken out.

    >>> standardise(torch.tensor([[[0, 255]]], dtype=torch.uint8), mean=0.5, std=0.5)
    tensor([[[[-1.,  1.]]]])
    """
    return images.unsqueeze(1).float().div_(255).sub_(mean).div_(std)


def hold_out(inputs: Tensor, targets: Tensor, *, num_validation: int, test: TensorDataset) -> Splits:
    """Hold out the last `num_validation` training samples for validation."""
    cut = len(inputs) - num_validation
    return Splits(TensorDataset(inputs[:cut], targets[:cut]), TensorDataset(inputs[cut:], targets[cut:]), test)


class Classification:
    """Loss and metric shared by the shipped tasks."""

    metric = "accuracy"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy per sample."""
        return cross_entropy_per_sample(outputs, targets)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 for a right answer, else 0."""
        return is_correct(outputs, targets)
