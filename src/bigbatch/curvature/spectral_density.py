r"""The density of an operator's eigenvalues, by stochastic Lanczos quadrature, with a band.

Paper:   Ghorbani, Krishnan, Xiao 2019, An Investigation into Neural Net Optimization via Hessian Eigenvalue Density, arXiv:1901.10159,
         Algorithm 2.
Formula: density(x) = 1/n sum_i delta(x - lambda_i) ~ 1/K sum_k sum_j w_j^(k) delta(x - theta_j^(k))
         theta_j, s_j: eigenpairs of the tridiagonal matrix of m Lanczos steps from v^(k), |v| = 1;    w_j = (first component of s_j)^2
         moment p: 1/n tr(H^p) ~ 1/K sum_k sum_j w_j theta_j^p,    which from one start is v^T H^p v exactly, for p < 2 m
         curve: each delta as a Gaussian of a stated width.
Units:   nodes are eigenvalues; weights sum to 1; a curve is in 1 / eigenvalue.
Differs: an outer eigenvalue that the first start finds to rounding weighs exactly 1/n, in every start, instead of the square of one
         component of a random vector, whose error is larger than itself; only what lies between is sampled, by vectors orthogonal to the
         found ones (as Chen, Hallman 2022, arXiv:2205.01736, for the trace). Full orthogonalisation; `eigh`, so that nodes are real.
Limits:  a value found that has an unlikely large component (more than 25 / n of the square) occurs several times, such as zero: it is
         sampled, not counted as one. Of one that occurs two to about ten times the first start misses the others.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

from bigbatch.core.checks import UserError, check_fraction, check_positive
from bigbatch.core.paper import Paper
from bigbatch.curvature.krylov import Array, Krylov
from bigbatch.curvature.operator import Operator

PAPER = Paper(
    method="Spectral density (stochastic Lanczos quadrature)",
    title="An Investigation into Neural Net Optimization via Hessian Eigenvalue Density",
    authors="Ghorbani, Krishnan, Xiao",
    year=2019,
    arxiv="1901.10159",
    where="Algorithm 2",
)
FOUND = 1e-4  # |H v - theta v| / |theta| of a value that counts as an eigenvalue: its own error is about the square
SEVERAL = 25.0  # n times its weight, from which on a value is taken to occur several times; 6e-7 of those that occur once


class Curve(NamedTuple):
    """A smoothed density with its band; low and high are NaN with a single start."""

    x: Array  # eigenvalues
    mean: Array  # density there, 1 / eigenvalue
    low: Array
    high: Array
    width: float  # standard deviation of the Gaussian kernel


class Moment(NamedTuple):
    """A moment of the density, 1/n tr(H^p)."""

    value: float
    standard_error: float  # over starts; NaN with a single one


class SpectralDensity(NamedTuple):
    """The quadrature of each start."""

    nodes: Array  # theta, shape (starts, steps)
    weights: Array  # w, shape (starts, steps), >= 0, each row sums to 1
    num_found: int  # of the nodes, how many are eigenvalues, the same in every row, each with weight 1/n
    products: int

    def moment(self, p: int) -> float: ...
