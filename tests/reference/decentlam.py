"""Algorithm 2 of arXiv:2104.11981, literally."""

import numpy as np


def decentlam(X, gradients, weights, lr, momentum, updates):
    """X: (dimension, workers); gradients(X) of the same shape; weights(k): W of update k. Yields X after each update."""
    M = np.zeros_like(X)
    for k in range(updates):
        G = gradients(X)
        tilde = np.empty_like(X)
        for i in range(X.shape[1]):
            tilde[:, i] = X[:, i] / lr - sum(weights(k)[i, j] * (X[:, j] - lr * G[:, j]) for j in range(X.shape[1])) / lr
        M = momentum * M + tilde
        X = X - lr * M
        yield X
