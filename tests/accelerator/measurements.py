"""The noise monitor between two readings on the simulated device, and what else is measured in an update."""

from functools import partial

import torch
from tests.accelerator.optimizers import model
from tests.accelerator.place import DEVICE, phase
from torch import nn

from bigbatch.noise.dual_norm_monitor import DualNormMonitor
from bigbatch.noise.monitor import NoiseScaleMonitor, layers_of
from bigbatch.noise.preconditioned import Preconditioned
from bigbatch.optim import LAMB

LOSS = nn.functional.cross_entropy


def monitored(*, parts=False, along=False, precondition=None, observe=False, accumulate=False, loss_scale=1.0):
    net = model()
    optimizer = precondition(net) if precondition else torch.optim.SGD(net.parameters(), lr=0.01)
    measures = Preconditioned(net, optimizer) if precondition else None
    monitor = NoiseScaleMonitor(net, parts=layers_of(net) if parts else None, along=along, precondition=measures, accumulate=accumulate)
    x, y = torch.randn(16, 3, 8, 8).to(DEVICE), torch.arange(16).remainder(10).to(DEVICE)
    for update in range(5):
        optimizer.zero_grad()
        with phase(f"update {update + 1}" if update > 1 else None):
            for inputs, targets in zip(x.chunk(4), y.chunk(4), strict=True):
                (LOSS(net(inputs), targets) / 4).backward()
                monitor.micro_batch(len(inputs), divisor=16)
            if observe:
                flat = torch.cat([p.grad.flatten() for p in net.parameters()])
                monitor.observe(flat, flat)
            monitor.update(loss_scale=loss_scale)
            optimizer.step()
    assert len(monitor.flush()) == 5
    monitor.forget()
    monitor.close()


def looked(norm):
    """A look at every update, the second and later ones while the clock of waits runs."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    monitor = DualNormMonitor(net, norm=norm, optimizer=optimizer, every_updates=1, parts=layers_of(net))
    x, y = torch.randn(16, 3, 8, 8).to(DEVICE), torch.arange(16).remainder(10).to(DEVICE)
    for update in range(5):
        optimizer.zero_grad()
        with phase(f"update {update + 1}" if update > 1 else None):
            for inputs, targets in zip(x.chunk(4), y.chunk(4), strict=True):
                (LOSS(net(inputs), targets) / 4).backward()
                monitor.micro_batch(len(inputs), divisor=16)
            monitor.update()
            optimizer.step()
    assert len(monitor.flush()) == 5
    assert monitor.estimate().num_updates == 4
    monitor.close()


def _lamb(net):
    return LAMB(net.parameters(), lr=1e-3)


def _adam(net):
    return torch.optim.Adam(net.parameters(), lr=1e-3)


CASES = {
    "monitor": monitored,
    "monitor that adds up passes": partial(monitored, accumulate=True),
    "monitor of layers": partial(monitored, parts=True),
    "monitor along the last gradient": partial(monitored, along=True),
    "monitor, scaled losses": partial(monitored, loss_scale=1024.0),
    "monitor of exchanged gradients": partial(monitored, observe=True),
    "monitor as LAMB weighs": partial(monitored, precondition=_lamb),
    "monitor in the l1 norm": partial(looked, "l1"),
    "monitor in the nuclear norm": partial(looked, "nuclear"),
    "monitor as Adam weighs": partial(monitored, precondition=_adam),
}
PLANTS = [
    ("monitor", "noise.monitor", "NoiseScaleMonitor.micro_batch"),
    ("monitor", "noise.monitor", "NoiseScaleMonitor.update"),
    ("monitor", "noise.monitor", "NoiseScaleMonitor._measure_small"),
    ("monitor along the last gradient", "noise.monitor", "NoiseScaleMonitor._on_gradient"),
    ("monitor that adds up passes", "noise.monitor", "NoiseScaleMonitor._on_gradients"),
    ("monitor that adds up passes", "noise.gradient_sum", "GradientSum.take"),
    ("monitor of exchanged gradients", "noise.monitor", "NoiseScaleMonitor.observe"),
    ("monitor as LAMB weighs", "noise.preconditioned", "adam_preconditioned"),
    ("monitor in the l1 norm", "noise.dual_norm_monitor", "DualNormMonitor._look"),
    ("monitor in the nuclear norm", "noise.dual_norm", "polar"),
]
