"""Literal transcriptions of the papers' pseudo-code: one tensor, one line a formula, float64, no care for speed."""

import math

import torch


def lars(w, v, g, *, lr, momentum, weight_decay, trust_coefficient, eps=0.0, nesterov=False, lr_in_momentum=True, adapt=True):
    """You, Gitman, Ginsburg 2017, Algorithm 1. Returns w, v."""
    lam = 1.0
    if adapt and w.norm() != 0 and g.norm() != 0:
        lam = trust_coefficient * w.norm() / (g.norm() + weight_decay * w.norm() + eps)
    d = g + weight_decay * w
    if lr_in_momentum:
        v = momentum * v + lr * lam * d
        return w - (momentum * v + lr * lam * d if nesterov else v), v
    v = momentum * v + lam * d
    return w - lr * (momentum * v + lam * d if nesterov else v), v


def lamb(w, m, v, t, g, *, lr, betas, eps, weight_decay, bias_correction=True, adapt=True):
    """You et al. 2019, Algorithm 2. Returns w, m, v."""
    b1, b2 = betas
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g * g
    m_hat, v_hat = (m / (1 - b1**t), v / (1 - b2**t)) if bias_correction else (m, v)
    u = m_hat / (v_hat.sqrt() + eps) + weight_decay * w
    ratio = w.norm() / u.norm() if adapt and w.norm() != 0 and u.norm() != 0 else 1.0
    return w - lr * ratio * u, m, v


def project(w, g, p, *, delta, eps, wd_ratio):
    """Heo et al. 2020, Equation 12 and Algorithms 1 and 2: rows first, then the layer. Returns p, the ratio of decay."""
    if w.ndim < 2:
        return p, 1.0
    for view in (lambda t: t.reshape(t.shape[0], -1), lambda t: t.reshape(1, -1)):
        ws, gs, ps = view(w), view(g), view(p)
        cosines = [abs(float(a @ b)) / (max(float(a.norm()), eps) * max(float(b.norm()), eps)) for a, b in zip(gs, ws, strict=True)]
        if max(cosines) < delta / math.sqrt(ws.shape[1]):
            hats = [a / (a.norm() + eps) for a in ws]
            return torch.stack([b - a * (a @ b) for a, b in zip(hats, ps, strict=True)]).reshape(p.shape), wd_ratio
    return p, 1.0


def adamp(w, m, v, t, g, *, lr, betas, eps, weight_decay, delta=0.1, wd_ratio=0.1):
    """Heo et al. 2020, Algorithm 2. Returns w, m, v."""
    b1, b2 = betas
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g * g
    p = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)
    p, ratio = project(w, g, p, delta=delta, eps=eps, wd_ratio=wd_ratio)
    return w * (1 - lr * weight_decay * ratio) - lr * p, m, v


def sgdp(w, v, g, *, lr, momentum, weight_decay, nesterov=False, dampening=0.0, eps=1e-8, delta=0.1, wd_ratio=0.1):
    """Heo et al. 2020, Algorithm 1. Returns w, v."""
    v = momentum * v + (1 - dampening) * g
    p = g + momentum * v if nesterov else v
    p, ratio = project(w, g, p, delta=delta, eps=eps, wd_ratio=wd_ratio)
    return w * (1 - lr * weight_decay * ratio / (1 - momentum)) - lr * p, v


def newton_schulz(z, steps=5):
    """Jordan 2024: five steps of X <- aX + b(XX')X + c(XX')^2 X, on one matrix, wide side across."""
    x = z.T if z.shape[0] > z.shape[1] else z
    x = x / max(float(x.norm()), 1e-7)
    for _ in range(steps):
        x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
    return x.T if z.shape[0] > z.shape[1] else x


def muon(w, v, g, *, lr, momentum, weight_decay, nesterov=True, matrices=1, scale="matched_rms"):
    """Liu et al. 2025, Section 2, one matrix of a stack after another. Returns w, v."""
    v = momentum * v + (1 - momentum) * g
    z = (1 - momentum) * g + momentum * v if nesterov else v
    steps = []
    for part in z.reshape(z.shape[0], -1).chunk(matrices):
        rows, columns = part.shape
        factor = 0.2 * math.sqrt(max(rows, columns)) if scale == "matched_rms" else math.sqrt(max(1, rows / columns))
        steps.append(factor * newton_schulz(part))
    return w * (1 - lr * weight_decay) - lr * torch.cat(steps).reshape(w.shape), v


def adamw(w, m, v, t, g, *, lr, betas, eps, weight_decay):
    """Loshchilov and Hutter 2017, Algorithm 2. Returns w, m, v."""
    b1, b2 = betas
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g * g
    return w - lr * ((m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps) + weight_decay * w), m, v


def gram_schmidt(columns):
    """Orthonormal columns that span the same spaces, one after another."""
    basis = []
    for column in columns.T:
        rest = column
        for _ in range(2):  # twice is enough for rounding
            rest = rest - sum((q * (q @ rest) for q in basis), torch.zeros_like(rest))
        basis.append(rest / rest.norm())
    return torch.stack(basis, dim=1)


def soap_muon(w, state, t, g, *, lr, momentum, weight_decay, beta2, damping, eps, sides=("left", "right")):
    """bigbatch.optim.muon.soap_muon's formula for one matrix of full rank; `state` is a dict. Returns w, state."""
    grams = {"left": g @ g.T, "right": g.T @ g}
    state = {"v": torch.zeros_like(g), "second": torch.zeros_like(g), **state}
    turns = {}
    for side, gram in grams.items():
        turns[side] = torch.eye(len(gram), dtype=g.dtype)
        if side in sides:
            mean = beta2 * state.get(side, 0) + (1 - beta2) * gram
            shifted = mean + 1e-3 * mean.trace() / len(mean) * turns[side]
            state[side], turns[side] = mean, gram_schmidt(shifted @ state.get(f"Q {side}", turns[side]))
            state[f"Q {side}"] = turns[side]
    left, right = turns["left"], turns["right"]
    state["second"] = beta2 * state["second"] + (1 - beta2) * (left.T @ g @ right) ** 2
    state["v"] = momentum * state["v"] + (1 - momentum) * g
    z = (1 - momentum) * g + momentum * state["v"]
    size = (state["second"] / (1 - beta2**t)).sqrt()
    p = left @ ((left.T @ z @ right) / (size + damping * size.mean() + eps)) @ right.T
    return w * (1 - lr * weight_decay) - lr * 0.2 * math.sqrt(max(w.shape)) * newton_schulz(p), state
