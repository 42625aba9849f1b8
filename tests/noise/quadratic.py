"""A noisy quadratic whose critical batch is known, and branches of it: plain gradient descent on L = 1/2 sum h_i theta_i^2 in numpy."""

import numpy as np

from bigbatch.noise.branches import Branches


class Quadratic:
    """With curvatures h, gradient noise of covariance diag(s2) a sample, at a point theta where noise decides.

    Its critical batch is tr(H S) / (G^T H G), McCandlish et al. 2018, Equation 2.8.
    """

    global_batch, lr, dimensions = 16, 0.1, 200

    def __init__(self, seed=0):
        random = np.random.default_rng(seed)
        self.h = np.geomspace(1, 0.05, self.dimensions)
        self.s2 = self.h.copy()
        at_rest = self.lr * self.s2 / self.global_batch / (self.h * (2 - self.lr * self.h))  # of theta^2, at a constant rate
        sq = at_rest + 0.02 * random.standard_normal(self.dimensions) ** 2
        self.theta = np.sqrt(sq) * random.choice([-1, 1], self.dimensions)
        g = self.h * self.theta
        self.critical_batch = float((self.h * self.s2).sum() / (g @ (self.h * g)))
        self.start_loss = float(self.loss(self.theta))

    def loss(self, theta):
        """Of points, shape (..., dimensions)."""
        return 0.5 * (self.h * theta**2).sum(-1)

    def branch(self, multiple, samples, rng, repeats):
        """Losses of so many branches; the rate, times the root of the multiple, falls to zero."""
        batch = multiple * self.global_batch
        updates, theta = max(1, round(samples / batch)), np.tile(self.theta, (repeats, 1))
        for update in range(updates):
            lr = self.lr * multiple**0.5 * (1 - update / updates)
            noise = rng.standard_normal(theta.shape) * np.sqrt(self.s2 / batch)
            theta = theta - lr * (self.h * theta + noise)
        return self.loss(theta)

    def studies(self, *, samples, multiples, windows, repeats, seed):
        """The branches of many studies: of the smallest batch over half the samples, and of every multiple."""
        rng, points = np.random.default_rng(seed), [(1, samples // 2), *((k, samples) for k in multiples)]
        losses = [self.branch(k, n, rng, repeats * windows).reshape(repeats, windows) for k, n in points]
        return [
            [Branches(k * self.global_batch, n, tuple(of[number].tolist())) for (k, n), of in zip(points, losses, strict=True)]
            for number in range(repeats)
        ]
