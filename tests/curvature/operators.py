"""Operators whose eigenvalues are known."""

import torch


class Diagonal:
    """Given eigenvalues, in a basis that no solver can know: solvers see products only, and random vectors look alike in every basis."""

    def __init__(self, values, dtype=torch.float64):
        self.values = torch.as_tensor(values, dtype=dtype)
        self.size, self.dtype, self.device = len(self.values), dtype, self.values.device
        self.rows = 0  # multiplied so far

    def __call__(self, vectors):
        self.rows += vectors.numel() // self.size
        return vectors * self.values


def random_symmetric(n, seed=0):
    matrix = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (matrix + matrix.T) / 2


def true_residuals(operator, found):
    """|H v - lambda v| / |lambda| of what was returned, by products anew."""
    v, values = found.vectors.double(), found.values[:, None]
    return ((operator(found.vectors).double() - values * v).norm(dim=1) / values[:, 0].abs()).tolist()
