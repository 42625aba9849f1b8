"""UCI's handwritten digits: 1,797 real grey images of 8 x 8, shipped with this package. For smoke runs that need no download."""

import functools
import gzip
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from bigbatch.tasks.classification import hold_out
from bigbatch.tasks.data.locate import read_verified
from bigbatch.tasks.task import Splits

FILE = Path(__file__).with_name("digits.csv.gz")  # origin and license: digits.md
SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"  # of the decompressed content
NUM_VALIDATION, NUM_TEST = 200, 300
MEAN, STD = 4.884, 6.017  # of all pixels, 0..16


def read_digits() -> tuple[Tensor, Tensor]:
    """Images as bytes 0..16, (n, 8, 8), and labels, (n,), in the file's order, which is by writer.

    Raises:
        DataError: If the file is damaged.

    >>> images, labels = read_digits()
    >>> images.shape, int(images.max()), labels[:3].tolist()
    (torch.Size([1797, 8, 8]), 16, [0, 1, 2])
    """
    content = read_verified(FILE, sha256=SHA256, decode=gzip.decompress, remedy="install bigbatch anew")
    table = torch.from_numpy(np.loadtxt(io.BytesIO(content), np.uint8, delimiter=","))
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].long()


@functools.lru_cache(maxsize=1)
def digits() -> Splits:
    """1,297 training, 200 validation and 300 test images, standardised, (n, 1, 8, 8), in one fixed shuffled order."""
    images, labels = read_digits()
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(labels)))
    inputs, targets = ((images[order].double() - MEAN) / STD).float().unsqueeze(1), labels[order]
    test = TensorDataset(inputs[-NUM_TEST:], targets[-NUM_TEST:])
    return hold_out(inputs[:-NUM_TEST], targets[:-NUM_TEST], num_validation=NUM_VALIDATION, test=test)
