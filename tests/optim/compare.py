"""What the optimizers' tests share: awkward tensors, and a run beside the literal transcription."""

import torch

SHAPES = [(6, 4), (5,), (4, 3, 3, 3), (1, 7), (8, 300), (1,)]
ADAM = {"betas": (0.9, 0.99), "eps": 1e-8}


def gradients(step, ws, seed=1):
    """Noisy, and for some tensors at right angles to the weights, so that every branch of the projections is taken."""
    random = torch.Generator().manual_seed(seed * 1000 + step)
    gs = []
    for i, w in enumerate(ws):
        g = torch.randn(w.shape, generator=random, dtype=torch.float64)
        if w.ndim > 1 and (step + i) % 3:
            rows = w.reshape(w.shape[0], -1) if (step + i) % 3 == 1 else w.reshape(1, -1)
            flat = g.reshape(rows.shape)
            g = (flat - rows * (flat * rows).sum(1, keepdim=True) / rows.square().sum(1, keepdim=True)).reshape(w.shape)
        gs.append(torch.zeros_like(g) if step == 7 and i == 0 else g)
    return gs


def assert_follows_the_paper(make, rule, *, slots, steps=100, counted=False):
    """100 steps of `make(params)` against `rule(w, *slots, [t], g)`, tensor by tensor, to 1e-12; gradients stay untouched."""
    random = torch.Generator().manual_seed(0)
    ws = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in SHAPES]
    ws[5].zero_()  # a tensor that starts at zero must still move
    params = [w.clone().requires_grad_() for w in ws]
    slow = [(w, *(torch.zeros_like(w) for _ in range(slots))) for w in ws]
    optimizer = make(params)
    for t in range(1, steps + 1):
        gs = gradients(t, [w for w, *_ in slow])
        for p, g in zip(params, gs, strict=True):
            p.grad = g.clone()
        optimizer.step()
        slow = [rule(*state, *([t] if counted else []), g) for state, g in zip(slow, gs, strict=True)]
        for p, g, (w, *_) in zip(params, gs, slow, strict=True):
            assert torch.equal(p.grad, g)
            torch.testing.assert_close(p.detach(), w, rtol=1e-12, atol=1e-12)
    assert params[5].abs().sum() > 0


def run(make, shapes, *, steps=5, dtype=torch.float32, seed=0):
    """Parameters after a few steps of an optimizer over seeded gradients."""
    random = torch.Generator().manual_seed(seed)
    params = [torch.randn(s, generator=random).to(dtype).requires_grad_() for s in shapes]
    optimizer = make(params)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=random).to(dtype)
        optimizer.step()
    return [p.detach() for p in params]
