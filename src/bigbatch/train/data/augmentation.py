"""Images shifted and mirrored at random: which view of a sample an epoch sees is drawn from (seed, epoch), like the order of samples.

So a resumed run, another number of workers and other micro-batches see the same views. He et al. 2016, arXiv:1512.03385, Section 4.2:
4 pixels of padding around a CIFAR image, a random crop of the image's size, mirrored every other time.
"""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from bigbatch.core.checks import RecipeError
from bigbatch.recipe import Recipe
from bigbatch.recipe.optional_sections import Augmentation
from bigbatch.train.data.input_range import data_range


@functools.lru_cache(maxsize=2)
def epoch_views(seed: int, epoch: int, num_samples: int, padding: int) -> Tensor:
    """Of the samples of an epoch in their order: rows and columns that a crop begins at, whether it is mirrored; (num_samples, 3), int64.

    >>> epoch_views(0, 0, 4, 1).amax(0).tolist()
    [2, 2, 1]
    """
    stream = np.random.SeedSequence([seed, epoch, 1]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(stream) >> 1)
    corners = torch.randint(2 * padding + 1, (num_samples, 2), generator=generator)
    return torch.cat([corners, torch.randint(2, (num_samples, 1), generator=generator)], dim=1)


def crop_and_flip(images: Tensor, views: Tensor, *, padding: int, flip: bool, fill: Tensor) -> Tensor:
    """A view of each image, of the images' shape.

    Args:
        images: Shape (n, channels, height, width).
        views: As of `epoch_views`, shape (n, 3).
        padding: Pixels around an image.
        flip: Whether the third column counts.
        fill: Values of the pixels around, shape (channels, 1, 1).

    >>> image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> crop_and_flip(image, torch.tensor([[0, 1, 1]]), padding=1, flip=True, fill=torch.zeros(1, 1, 1))
    tensor([[[[0., 0.],
              [2., 1.]]]])
    """
    n, channels, height, width = images.shape
    padded = fill.expand(n, channels, height + 2 * padding, width + 2 * padding).clone()
    padded[:, :, padding : padding + height, padding : padding + width] = images
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    columns = columns.expand(n, width)
    if flip:
        columns = torch.where(views[:, 2:] == 1, columns.flip(1), columns)
    samples = torch.arange(n, device=images.device)[:, None, None]
    cut = padded[samples, :, (views[:, :1] + rows)[:, :, None], (views[:, 1:2] + columns)[:, None, :]]  # (n, height, width, channels)
    return cut.permute(0, 3, 1, 2).contiguous()


class Views:
    """What a run's [augmentation] makes of its samples.

    Args:
        section: Of the recipe.
        recipe: For its seed and its samples.
        train: The training set: images in memory.

    Raises:
        RecipeError: If it is not that.
    """

    def __init__(self, section: Augmentation, recipe: Recipe, train: Any) -> None:
        if not isinstance(train, TensorDataset):
            raise RecipeError(
                "[augmentation]: the training set is not in memory, or has a collate(); augment in the data set itself, and leave the "
                "section out"
            )
        if len(train.tensors) != 2:
            raise RecipeError(
                f"[augmentation]: samples of {len(train.tensors)} tensors: it is for one tensor of images and its targets; augment in the "
                "data set itself, and leave the section out"
            )
        if train.tensors[0].ndim != 4:
            shape = tuple(train.tensors[0].shape)
            raise RecipeError(f"[augmentation]: inputs of shape {shape} are no images (n, channels, height, width); leave it out")
        self._section, self._seed, self._num_samples = section, recipe.seed, recipe.num_train_samples
        self._fill = data_range(train.tensors[0]).low

    def of(self, images: Tensor, start: int) -> Tensor:
        """The views of consecutive samples of the run, the first of them number `start`."""
        parts, count = [], len(images)
        while count:
            epoch, offset = divmod(start, self._num_samples)
            part = epoch_views(self._seed, epoch, self._num_samples, self._section.padding)[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        self._fill = self._fill.to(images)  # once: sending it each time would wait for the device
        views = torch.cat(parts).to(images.device, non_blocking=True)
        return crop_and_flip(images, views, padding=self._section.padding, flip=self._section.flip, fill=self._fill)
