"""Section 3.2 of arXiv:2506.10911, literally; the inner optimizer is heavy-ball SGD, whose momentum stays with its worker."""

import numpy as np


def noloco(X, gradients, pairs, lr, momentum, updates, *, period, a, b, g):
    """X: (dimension, workers); pairs(exchange): the partner of each worker. Yields X after each update."""
    M = np.zeros_like(X)
    phi = X.copy()
    delta = np.zeros_like(X)
    for t in range(1, updates + 1):
        M = momentum * M + gradients(X)
        X = X - lr * M
        if t % period == 0:
            partner = pairs(t // period - 1)
            Delta = X - phi
            new = np.empty_like(phi)
            for i, j in enumerate(partner):
                delta[:, i] = a * delta[:, i] + b / 2 * (Delta[:, i] + Delta[:, j]) - g * (phi[:, i] - (phi[:, i] + phi[:, j]) / 2)
                new[:, i] = phi[:, i] + delta[:, i]
            phi = new
            X = phi.copy()
        yield X
