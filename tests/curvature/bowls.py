"""Losses whose highest points are known: half of h w^2, the mean over samples with an h of their own each."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn


class Bowl(nn.Module):
    def __init__(self, *weights, dtype=torch.float64):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(weights, dtype=dtype))

    def forward(self, h):
        return (h * self.w.square()).sum(1) / 2


def output(outputs, _):
    return outputs


def batches_of(*h, dtype=torch.float64):
    """Five samples in two batches, whose mean is h."""
    mean = torch.tensor(h, dtype=dtype)
    off = torch.randn(5, len(h), generator=torch.Generator().manual_seed(3), dtype=dtype) / 10
    rows = mean * (1 + off - off.mean(0))
    return [(rows[:3], torch.zeros(3)), (rows[3:], torch.zeros(2))]


def network():
    """Everything that a careless pass would change: batch norm, dropout, mixed modes, gradients, a frozen weight, a buffer of integers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 3))
    model[4].bias.requires_grad_(False)
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.randn_like(p)
    model.train()
    model[2].eval()
    model[1](torch.randn(8, 6) * 3 + 1)
    return model


class Everything:
    """What of a model and of torch must be as before; checked at the end, also of a block that raises."""

    def __init__(self, model):
        self.model = model

    def __enter__(self):
        self.before = self._now()
        return self

    def __exit__(self, *_):
        now = self._now()
        for name, value in self.before.items():
            assert torch.equal(now[name], value) if isinstance(value, torch.Tensor) else now[name] == value, name

    def _now(self):
        told = {"random": torch.get_rng_state(), "modes": [m.training for m in self.model.modules()]}
        told |= {f"state {key}": value.clone() for key, value in self.model.state_dict().items()}
        told |= {f"grad {name}": None if p.grad is None else p.grad.clone() for name, p in self.model.named_parameters()}
        told["required"] = [p.requires_grad for p in self.model.parameters()]
        return told | {"places": [p.data_ptr() for p in self.model.parameters()]}


class RunsOut:
    """A loss that raises at its n-th call."""

    def __init__(self, loss, calls):
        self.loss, self.calls = loss, calls

    def __call__(self, outputs, targets):
        self.calls -= 1
        if not self.calls:
            raise KeyboardInterrupt
        return self.loss(outputs, targets)


def samples(n=10, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 4, generator=generator), torch.randint(3, (n,), generator=generator)) for _ in range(2)]


def smooth_network():
    """model, x, y and the same in batches of unequal sizes; float64."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 5)).double()
    x, y = torch.randn(60, 8, generator=generator, dtype=torch.float64), torch.randint(5, (60,), generator=generator)
    return SimpleNamespace(
        model=model, loss=per_sample, x=x, y=y, batches=list(zip(x.split([25, 7, 28]), y.split([25, 7, 28]), strict=True))
    )


def per_sample(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")
