"""Algorithm 1 of arXiv:2104.11981, literally."""

import numpy as np


def dmsgd(X, gradients, weights, lr, momentum, updates):
    """X: (dimension, workers); gradients(X) of the same shape; weights(k): W of update k. Yields X after each update."""
    M = np.zeros_like(X)
    for k in range(updates):
        M = momentum * M + gradients(X)
        moved = X - lr * M
        X = np.stack([sum(weights(k)[i, j] * moved[:, j] for j in range(X.shape[1])) for i in range(X.shape[1])], axis=1)
        yield X
