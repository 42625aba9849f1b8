"""How far two runs of a loop are apart."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bigbatch.check.watch import Array, Record

TOLERANCE = {True: 1e-6, False: 1e-3}
"""Largest relative deviation that counts as rounding, in 64 bits and in 32; faults are of a per cent and more."""

ZERO = 1e-7
"""A gradient or a way of the weights that is shorter than this, times the length of the weights, may be nothing but rounding."""


class Deviation(NamedTuple):
    """How a run differs from the reference.

    Attributes:
        largest: The largest relative deviation of what follows; infinite if steps differ in number.
        gradient: Of the gradients.
        weights: Of the weights' way from the start.
        learning_rate: Of the learning rates.
        first: Step at which it is above the tolerance, from 1; None if nowhere.
        ratio: Norm of the first step's gradient over that of the reference.
        cosine: Of the angle between both.
        steps: Number of steps here, and in the reference.
    """

    largest: float
    gradient: float
    weights: float
    learning_rate: float
    first: int | None
    ratio: float
    cosine: float
    steps: tuple[int, int]


def deviation(run: Record, reference: Record, *, tolerance: float) -> Deviation:
    """Compare one worker's steps to the reference's, step by step."""
    gradient = weights = rates = 0.0
    first = None
    least = ZERO * max(1.0, float(np.linalg.norm(reference.start)))
    for number, (a, b) in enumerate(zip(run.steps, reference.steps, strict=False), 1):
        here = (
            _relative(a.gradient, b.gradient, least),
            _relative(a.weights - run.start, b.weights - reference.start, least),
            _relative(np.array(a.learning_rates), np.array(b.learning_rates), 0.0),
        )
        gradient, weights, rates = max(gradient, here[0]), max(weights, here[1]), max(rates, here[2])
        first = number if first is None and max(here) > tolerance else first
    steps = len(run.steps), len(reference.steps)
    if steps[0] != steps[1]:
        first = first or min(steps) + 1
    ratio, cosine = math.nan, math.nan
    if min(steps) and len(run.steps[0].gradient) == len(reference.steps[0].gradient):
        g, h = run.steps[0].gradient, reference.steps[0].gradient
        norms = float(np.linalg.norm(g)), float(np.linalg.norm(h))
        if min(norms) > 0:
            ratio, cosine = norms[0] / norms[1], float(g @ h) / (norms[0] * norms[1])
    largest = math.inf if steps[0] != steps[1] else max(gradient, weights, rates)
    return Deviation(largest, gradient, weights, rates, first, ratio, cosine, steps)


def worst(records: Sequence[Record], reference: Record, *, tolerance: float) -> Deviation:
    """The largest deviation of any worker."""
    return max((deviation(each, reference, tolerance=tolerance) for each in records), key=lambda d: d.largest)


def _relative(a: Array, b: Array, least: float) -> float:
    """|a - b| / |b|, of a b of at least some length; infinite where shapes differ or a value is not finite."""
    if a.shape != b.shape or not np.isfinite(a).all() or not np.isfinite(b).all():
        return math.inf
    difference, size = float(np.linalg.norm(a - b)), max(float(np.linalg.norm(b)), least)
    return 0.0 if difference == 0 else difference / size if size else math.inf
