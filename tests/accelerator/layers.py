"""Layers on the simulated device: forward and backward, in training and in evaluation."""

from functools import partial

import torch
from tests.accelerator.place import DEVICE, phase
from torch import nn

from bigbatch.adversarial.concurrent import ConAdv, made_here
from bigbatch.adversarial.fgsm import Attack
from bigbatch.core.tensors.norms import global_norm, norms, sq_norm
from bigbatch.layers import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, Quantizer, SplitBatchNorm2d, adversarial_stream

SETTINGS = [{}, {"affine": False}, {"bias": False}, {"track_running_stats": False}, {"ghost_batch": None}]
INPUTS = {
    GhostBatchNorm1d: (20, 4),
    GhostBatchNorm2d: (20, 4, 5, 5),
    GhostBatchNorm3d: (20, 4, 2, 3, 3),
    SplitBatchNorm2d: (20, 4, 5, 5),
}


def _passes(layer, x, within):
    """Three forward and backward passes in training, one in evaluation; the first may build constants."""
    for number in range(3):
        x.grad = None
        with phase("training" if number else None), within(layer):
            layer(x).square().sum().backward()
    layer.eval()
    with phase("evaluation"), within(layer):
        layer(x).square().sum().backward()
        with torch.no_grad():
            layer(x)


class _Nothing:
    def __init__(self, layer):
        pass

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


def norm(cls, *, within=_Nothing):
    for settings in SETTINGS:
        for dtype, memory_format in ((torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last)):
            shape = INPUTS[cls]
            x = torch.randn(shape).to(memory_format=memory_format if len(shape) == 4 else torch.contiguous_format)
            layer = cls(4, **{"ghost_batch": 8} | settings).to(DEVICE)
            _passes(layer, x.to(DEVICE, dtype).requires_grad_(), within)


def quantizer():
    _passes(Quantizer(0.5).to(DEVICE), torch.randn(6, 3).to(DEVICE).requires_grad_(), _Nothing)


def lengths():
    tensors = [torch.randn(s).to(DEVICE) for s in ((3, 4), (5,))]
    with phase("norms"):
        sq_norm(tensors)
        global_norm(tensors)
        norms(tensors, tensors)


def twins(*, tau):
    """Adversarial examples for a loop of one's own."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 3)).to(DEVICE)
    attack = Attack(model, lambda outputs, targets: nn.functional.cross_entropy(outputs, targets, reduction="none"))
    conadv = ConAdv(made_here(attack), eps=0.1, low=-3.0, high=3.0, tau=tau)
    batches = [(torch.randn(4, 1, 5, 5).to(DEVICE), torch.arange(4).remainder(3).to(DEVICE)) for _ in range(4)]
    with phase("examples"):
        assert len(list(conadv.over(batches))) == 4


CASES = {
    **{cls.__name__: partial(norm, cls) for cls in INPUTS},
    "SplitBatchNorm2d, adversarial": partial(norm, SplitBatchNorm2d, within=adversarial_stream),
    "SplitBatchNorm2d, both streams": partial(norm, SplitBatchNorm2d, within=partial(adversarial_stream, after=9)),
    "Quantizer": quantizer,
    "norms": lengths,
    "ConAdv": partial(twins, tau=1),
    "DisAdv": partial(twins, tau=0),
}
PLANTS = [
    ("GhostBatchNorm1d", "layers.ghost_batch_norm", "GhostBatchNorm.forward"),
    ("GhostBatchNorm2d", "layers.normalise_groups", "normalise_groups"),
    ("GhostBatchNorm3d", "layers.normalise_groups", "Running.momenta"),
    ("SplitBatchNorm2d", "layers.split_batch_norm", "SplitBatchNorm.forward"),
    ("SplitBatchNorm2d, both streams", "layers.normalise_groups", "_group_by_group"),
    ("Quantizer", "layers.integer_network", "Quantizer.forward"),
    ("norms", "core.tensors.norms", "sq_norm"),
    ("norms", "core.tensors.norms", "norms"),
    ("ConAdv", "adversarial.concurrent", "ConAdv.next_update"),
    ("DisAdv", "adversarial.fgsm", "fgsm_step"),
]
