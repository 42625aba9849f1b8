r"""Multiplicative gradient noise: each sample's gradient times a random number, so that a large batch is as noisy as a small one.

Paper:   Hoffer, Hubara, Soudry 2017, Train longer, generalize better, arXiv:1705.08741, Section 4.1.
Formula: g^ = (1/M) sum_n g_n z_n,   z_n ~ N(1, sigma^2) independent,   sigma^2 = M / M_S - 1
         for a batch of M samples to have the gradient noise of M_S: with S the covariance of one sample's gradient g_n, and G its mean,
             cov(g^) = (1 + sigma^2)/M S + sigma^2/M G G^T = S / M_S + (1/M_S - 1/M) G G^T.
Units:   samples.
Differs: the paper says that sigma^2 is proportional to M and leaves the constant; this one makes the first term exact. The second, along
         the mean gradient itself, is what the paper neglects: it makes the rate noisy by a factor N(1, 1/M_S).
"""

import math

import numpy as np
import torch
from torch import Tensor

from bigbatch.core.checks import check_positive
from bigbatch.core.paper import Paper

PAPER = Paper(
    method="Multiplicative gradient noise",
    title="Train longer, generalize better: closing the generalization gap in large batch training of neural networks",
    authors="Hoffer, Hubara, Soudry",
    year=2017,
    arxiv="1705.08741",
    where="Section 4.1",
)


def noise_variance(global_batch: int, noise_batch: int) -> float:
    """sigma^2 of the factors; zero for a batch that is noisy enough already.

    Args:
        global_batch: M, samples in the update.
        noise_batch: M_S, samples whose noise is wanted.

    Raises:
        UserError: If either is not positive.

    >>> noise_variance(2048, 128), noise_variance(64, 128)
    (15.0, 0.0)
    """
    check_positive("global_batch", global_batch)
    check_positive("noise_batch", noise_batch)
    return max(0.0, global_batch / noise_batch - 1)


def noise_factors(global_batch: int, noise_batch: int, *, seed: int, start: int) -> Tensor:
    """The factors z_n of an update's samples, to multiply their losses with before the mean is taken.

    A function of its arguments alone: workers and micro-batches take their slices of it, and a resumed run gets it again.

    Args:
        global_batch: M, samples in the update.
        noise_batch: M_S, samples whose noise is wanted.
        seed: Of the run.
        start: Samples that the run has consumed before the update.

    Returns:
        Shape (M,), float32.

    >>> z = noise_factors(4096, 64, seed=0, start=0)
    >>> round(z.mean().item()), round(z.var().item() / 63, 1)
    (1, 1.0)
    """
    sigma = math.sqrt(noise_variance(global_batch, noise_batch))
    normal = np.random.default_rng([seed, start]).standard_normal(global_batch, dtype=np.float32)
    return 1 + sigma * torch.from_numpy(normal)
