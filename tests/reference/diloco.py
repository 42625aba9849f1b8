"""Algorithm 1 of arXiv:2311.08105, literally; the inner optimizer is heavy-ball SGD, whose momentum stays with its worker."""

import numpy as np


def diloco(X, gradients, lr, momentum, updates, *, period, outer_lr, outer_momentum, nesterov=True):
    """X: (dimension, workers), equal columns; gradients(X) of the same shape. Yields X after each update."""
    M = np.zeros_like(X)
    theta = X[:, 0].copy()
    u = np.zeros_like(theta)
    for t in range(1, updates + 1):
        M = momentum * M + gradients(X)
        X = X - lr * M
        if t % period == 0:
            outer_gradient = sum(theta - X[:, i] for i in range(X.shape[1])) / X.shape[1]
            u = outer_momentum * u + outer_gradient
            theta = theta - outer_lr * (outer_gradient + outer_momentum * u if nesterov else u)
            X = np.stack([theta] * X.shape[1], axis=1)
        yield X
