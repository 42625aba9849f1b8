"""AutoWU as its paper and released code have it, with the departures that schedules/autowu.py names: kernel matrices and their inverses,
the noise's correlation matrix, every pair of correlation and ratio by itself, the joint covariance of places."""

import numpy as np
from scipy.stats import norm

CORRELATIONS, RATIOS = (0.0, 0.3, 0.6, 0.8, 0.9, 0.96, 0.99), 10 ** np.arange(-6, 2.01, 0.5)


def kernel(x, other):
    return np.exp(-((x[:, None] - other[None, :]) ** 2) / (2 * 0.2**2))


def covariance_of(x, c, r):
    """Of losses that follow each other, over a."""
    apart = np.abs(np.subtract.outer(np.arange(len(x)), np.arange(len(x))))
    return kernel(x, x) + r * float(c) ** apart


def log_likelihood(x, y, m, a, c, r):
    K = a * covariance_of(x, c, r)
    rest = y - m
    sign, log_det = np.linalg.slogdet(K)
    assert sign > 0
    return -0.5 * (rest @ np.linalg.solve(K, rest) + log_det + len(x) * np.log(2 * np.pi))


def likeliest(x, y, c, r):
    """m and a, by generalised least squares."""
    inverse = np.linalg.inv(covariance_of(x, c, r))
    m = (inverse @ y).sum() / inverse.sum()
    return m, (y - m) @ inverse @ (y - m) / len(y)


def fits(x, y):
    """m, a, c, r and the probability of each pair of c and r, without those below 5 % of the likeliest."""
    every = [(*likeliest(x, y, c, r), c, r) for c in CORRELATIONS for r in RATIOS]
    logs = np.array([log_likelihood(x, y, *one) for one in every])
    p = np.exp(logs - logs.max())
    p[p < 0.05] = 0
    return [(one, chance) for one, chance in zip(every, p / p.sum(), strict=True) if chance]


def posterior(x, y, m, a, c, r, places):
    """Mean of f + m and joint covariance of f at places."""
    K, across = a * covariance_of(x, c, r), a * kernel(places, x)
    return m + across @ np.linalg.solve(K, y - m), a * kernel(places, places) - across @ np.linalg.solve(K, across.T)


def probability(mean, covariance, i, j):
    """P(f_i < f_j)."""
    variance = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
    return norm.cdf((mean[j] - mean[i]) / np.sqrt(variance + 1e-4))


def means(x, values):
    """Over at most 32 equal parts of [0, 1], as many losses in each as can be."""
    num = int(np.ceil(len(x) / np.ceil(len(x) / 32)))
    parts = [[v for at, v in zip(x, values, strict=True) if i <= at * num < i + 1 or (at == 1 and i == num - 1)] for i in range(num)]
    return np.array([sum(part) / len(part) for part in parts])


def test(x, losses):
    """Whether the loss has turned, with 0.95, and x*."""
    y = np.array([min(value, max(losses[:10])) for value in losses])
    x, y = means(x, x), means(x, y / np.sqrt(np.mean(y**2)))
    turned, average = 0.0, np.zeros(200)
    for one, chance in fits(x, y):
        mean, covariance = posterior(x, y, *one, np.linspace(0, 1, 200))
        rose = probability(mean, covariance, np.arange(199), 199).max()
        fell = probability(mean, covariance, np.argmin(mean), 0)
        turned += chance * min(rose, fell)
        average += chance * mean
    return bool(turned > 0.95), np.argmin(average) / 199


def run(loss_of, total, batch, eta_min=1e-5, eta_max=1.0, rho=0.5):
    """Rates of a whole run; `loss_of` a rate and the update's number."""
    samples, losses, rates, found, tested, switch = [], [], [], [], 0, None
    for t in range(total // batch):
        s = t * batch
        if switch is None:
            rate = min(eta_max, eta_min * (eta_max / eta_min) ** (s / (rho * total)))
        else:
            at, top = switch
            rate = top * (1 + np.cos(np.pi * (s - at) / (total - at))) / 2
        rates.append(rate)
        if switch is not None:
            continue
        samples.append(s)
        losses.append(loss_of(rate, t))
        half = s >= rho * total
        if s // (total / 120) > tested or half:
            tested = s // (total / 120)
            outcome, x = test(np.array(samples) / s, np.array(losses))
            found.append(outcome and len(losses) >= 10)
            if half or (len(found) >= 3 and all(found[-3:])):
                switch = s, eta_min * (eta_max / eta_min) ** (x * s / (rho * total))
    return rates
