"""Literal transcription of Hoffer et al. 2017, Algorithm 1, for inputs (n, channels), in numpy."""

import numpy as np


def ghost_batch_norm(x, groups, gamma, beta, eps, mean_run, var_run, momentum):
    """Returns the output and the running statistics after it; `groups` are the sizes of the ghost batches."""
    k = len(groups)
    out, means, variances, start = np.empty_like(x), [], [], 0
    for size in groups:
        part = x[start : start + size]
        mu, var = part.mean(0), part.var(0)
        out[start : start + size] = gamma * (part - mu) / np.sqrt(var + eps) + beta
        means.append(mu)
        variances.append(part.var(0, ddof=1))
        start += size
    new_mean = (1 - momentum) ** k * mean_run
    new_var = (1 - momentum) ** k * var_run
    for i in range(1, k + 1):
        new_mean = new_mean + (1 - momentum) ** (k - i) * momentum * means[i - 1]
        new_var = new_var + (1 - momentum) ** (k - i) * momentum * variances[i - 1]
    return out, new_mean, new_var
