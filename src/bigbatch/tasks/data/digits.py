"""scikit-learn's digits: 1,797 real grey images of 8 x 8, shipped in its wheel. For smoke runs that need no download."""

import functools

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from bigbatch.tasks.classification import hold_out
from bigbatch.tasks.task import Splits

NUM_VALIDATION, NUM_TEST = 200, 300
MEAN, STD = 4.884, 6.017  # of all pixels, 0..16


@functools.lru_cache(maxsize=1)
def digits() -> Splits:
    """1,297 training, 200 validation and 300 test images, standardised, (n, 1, 8, 8), in one fixed shuffled order."""
    bunch = load_digits()
    order = np.random.RandomState(0).permutation(len(bunch.target))  # the file is ordered by writer
    inputs = torch.from_numpy((bunch.images[order] - MEAN) / STD).float().unsqueeze(1)
    targets = torch.from_numpy(bunch.target[order].astype(np.int64))
    test = TensorDataset(inputs[-NUM_TEST:], targets[-NUM_TEST:])
    return hold_out(inputs[:-NUM_TEST], targets[:-NUM_TEST], num_validation=NUM_VALIDATION, test=test)
