"""Algorithm 1 of arXiv:1905.05957, literally: n workers and one server, in one process."""

import numpy as np


def quantised(v, largest, block):
    """Q(v): each block on a symmetric grid, whose step is a float32."""
    out = np.zeros_like(v)
    for start in range(0, len(v), block):
        piece = v[start : start + block]
        step = float(np.float32(max(abs(x) for x in piece) / largest))
        for i, x in enumerate(piece):
            out[start + i] = 0.0 if step == 0 else step * max(-largest, min(largest, round(x / step)))
    return out


def double_squeeze(rounds, largest, block):
    """`rounds`: lists of the workers' gradients. Yields what all workers take for the mean gradient."""
    workers, server = None, 0.0
    for gradients in rounds:
        n = len(gradients)
        workers = workers or [0.0] * n
        sent = []
        for i in range(n):
            v = gradients[i] + workers[i]
            sent.append(quantised(v, largest, block))
            workers[i] = v - sent[i]
        v = sum(sent) / n + server
        out = quantised(v, largest, block)
        server = v - out
        yield out
