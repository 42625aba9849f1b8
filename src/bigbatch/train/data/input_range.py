"""Between which values the inputs of a data set lie."""

from typing import NamedTuple

import torch
from torch import Tensor


class Range(NamedTuple):
    """Least and largest value: numbers, or (channels, 1, 1) for images."""

    low: Tensor
    high: Tensor


def data_range(inputs: Tensor) -> Range:
    """The range of each channel of images (n, channels, height, width), and of all values of any other inputs together.

    >>> data_range(torch.tensor([[0.0, 3.0], [-1.0, 2.0]]))
    Range(low=tensor(-1.), high=tensor(3.))
    """
    if inputs.ndim != 4:
        return Range(*torch.aminmax(inputs))
    return Range(inputs.amin((0, 2, 3))[:, None, None], inputs.amax((0, 2, 3))[:, None, None])
