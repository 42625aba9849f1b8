"""AutoWU as its paper and released code have it, with the departures that schedules/autowu.py names: kernel matrices and their inverses,
a general optimiser for the likelihood, the joint covariance of all places."""

import numpy as np
from scipy.optimize import minimize
from scipy.stats import norm


def kernel(x, other):
    return np.exp(-((x[:, None] - other[None, :]) ** 2) / (2 * 0.2**2))


def log_likelihood(x, y, m, a, noise):
    K = a * kernel(x, x) + noise * np.eye(len(x))
    r = y - m
    sign, log_det = np.linalg.slogdet(K)
    assert sign > 0
    return -0.5 * (r @ np.linalg.solve(K, r) + log_det + len(x) * np.log(2 * np.pi))


def fit(x, y):
    """m, a and the noise, from several starts."""

    def cost(p):
        return -log_likelihood(x, y, p[0], np.exp(p[1]), np.exp(p[2]))

    tries = [minimize(cost, [y.mean(), a, n], method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-8, "fatol": 1e-10})
             for a in (-4.0, 0.0) for n in (-8.0, -4.0)]  # fmt: skip
    m, a, noise = min(tries, key=lambda t: t.fun).x
    return m, np.exp(a), np.exp(noise)


def posterior(x, y, m, a, noise, places):
    """Mean and joint covariance of f at places."""
    K = a * kernel(x, x) + noise * np.eye(len(x))
    across = a * kernel(places, x)
    mean = m + across @ np.linalg.solve(K, y - m)
    return mean, a * kernel(places, places) - across @ np.linalg.solve(K, across.T)


def probability(mean, covariance, i, j):
    """P(f_i < f_j)."""
    variance = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
    return norm.cdf((mean[j] - mean[i]) / np.sqrt(variance + 1e-4))


def test(x, losses):
    """Of one draw that is the whole: whether the loss has turned, with 0.95, and x*."""
    y = np.array([min(value, max(losses[:10])) for value in losses])
    y = y / np.sqrt(np.mean(y**2))
    mean, covariance = posterior(x, y, *fit(x, y), np.linspace(0, 1, 500))
    lowest = int(np.argmin(mean))
    rose = max(probability(mean, covariance, i, 499) for i in range(499))
    return bool(rose > 0.95 and probability(mean, covariance, lowest, 0) > 0.95), lowest / 499


def run(loss_of, total, batch, eta_min=1e-5, eta_max=1.0, rho=0.5):
    """Rates of a whole run; `loss_of` a rate and the update's number. To 100 losses, so that no draw is random."""
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
