"""Literal transcription of Liu et al. 2022, Algorithm 1, on one worker: a linear softmax model, momentum SGD, in numpy.

Batches are lists of (x, y); the perturbations of step t are made from the weights of step t - tau, those of the first tau steps from the
first weights. Everything is kept and looked up, nothing is buffered.
"""

import numpy as np


def softmax_gradients(W, x, y):
    """Mean loss's gradients towards W (classes, features), and the summed loss's towards x (n, features)."""
    z = x @ W.T
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return p.T @ x / len(y), p @ W


def concurrent_adversarial(W, batches, *, eps, low, high, tau, clean, adversarial, lr, momentum):
    """Yields the weights after each step; `clean` and `adversarial` are the weights of the two losses."""
    thetas, velocity = [W], np.zeros_like(W)
    for t, (x, y) in enumerate(batches):
        theta_old = thetas[max(t - tau, 0)]
        _, towards_x = softmax_gradients(theta_old, x, y)
        x_adv = np.clip(x + eps * np.sign(towards_x), low, high)
        g_clean, _ = softmax_gradients(thetas[t], x, y)
        g_adv, _ = softmax_gradients(thetas[t], x_adv, y)
        velocity = momentum * velocity + clean * g_clean + adversarial * g_adv
        thetas.append(thetas[t] - lr * velocity)
        yield thetas[-1]
