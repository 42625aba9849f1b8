"""Algorithm 1 of arXiv:1705.09056, literally: one matrix of all workers' weights, a column a worker."""

import numpy as np


def d_psgd(X, gradients, weights, lr, updates):
    """X: (dimension, workers); gradients(X) of the same shape; weights(k): W of update k. Yields X after each update."""
    for k in range(updates):
        G = gradients(X)
        half = np.empty_like(X)
        for i in range(X.shape[1]):
            half[:, i] = sum(weights(k)[i, j] * X[:, j] for j in range(X.shape[1]))
        X = half - lr * G
        yield X
