"""Communication between workers: ranks, gradients before a step, and weights after it."""
