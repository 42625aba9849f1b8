"""Algorithm 2 of arXiv:2501.18512, literally; the inner optimizer is heavy-ball SGD, whose momentum stays with its worker."""

import numpy as np


def streaming_diloco(X, gradients, lr, momentum, updates, *, fragments, period, overlap, mix, outer_lr, outer_momentum):
    """X: (dimension, workers), equal columns; fragments: lists of rows. Yields X after each update."""
    workers = X.shape[1]
    M = np.zeros_like(X)
    theta = X[:, 0].copy()
    u = np.zeros_like(theta)
    sent = {}  # fragment and update to the mean displacement
    for t in range(1, updates + 1):
        M = momentum * M + gradients(X)
        X = X - lr * M
        for p, rows in enumerate(fragments):
            t_p = int(np.ceil(period * (p + 1) / len(fragments)))
            if t >= t_p and (t - t_p) % period == 0:
                sent[p, t] = sum(theta[rows] - X[rows, i] for i in range(workers)) / workers
            if (p, t - overlap) in sent:
                delta = sent.pop((p, t - overlap))
                u[rows] = outer_momentum * u[rows] + delta
                theta[rows] = theta[rows] - outer_lr * (delta + outer_momentum * u[rows])
                alpha = mix if overlap else 0.0
                for i in range(workers):
                    X[rows, i] = alpha * X[rows, i] + (1 - alpha) * theta[rows]
        yield X.copy()
