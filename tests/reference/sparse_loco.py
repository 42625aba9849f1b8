"""The rule of arXiv:2508.15706, literally, and the four levels of comm/compression/sparse_loco.py by trying all splits; in one process."""

import numpy as np


def four_levels(values):
    """+-a for the first, +-b for the others, at the least squared error; the values are in the order of descending magnitudes."""
    x = [abs(v) for v in values]
    best = None
    for j in range(1, len(x) + 1):
        a, b = sum(x[:j]) / j, sum(x[j:]) / max(len(x) - j, 1)
        level = [a] * j + [b] * (len(x) - j)
        wrong = sum((p - q) ** 2 for p, q in zip(level, x, strict=True))
        if best is None or wrong < best[0]:
            best = wrong, level
    return [float(np.float32(p)) * (-1.0 if v < 0 else 1.0) for p, v in zip(best[1], values, strict=True)]


def compressed(e, chunk, top):
    out = np.zeros_like(e)
    for start in range(0, len(e), chunk):
        piece = e[start : start + chunk]
        k = max(1, round(top * len(piece) / chunk))
        largest = sorted(range(len(piece)), key=lambda i: -abs(piece[i]))[:k]
        out[[start + i for i in largest]] = four_levels([piece[i] for i in largest])
    return out


def sparse_loco(rounds, chunk, top, decay):
    """`rounds`: lists of the workers' displacements. Yields their mean as all workers take it."""
    errors = None
    for displacements in rounds:
        errors = errors or [np.zeros_like(d) for d in displacements]
        sent = []
        for i, d in enumerate(displacements):
            e = decay * errors[i] + d
            sent.append(compressed(e, chunk, top))
            errors[i] = e - sent[i]
        yield sum(sent) / len(displacements)
