"""Steps of every optimizer, and layers, on tensors that hold nothing; where torch allows it they say `cuda`: the branches that a GPU takes.

Fake tensors have no values, so that whatever needs one raises; so does an operation on tensors of two devices. torch built for the CPU
makes such tensors for `cuda`, but can't change their type, index them or run a backward pass: what does is tried on `meta`.
"""

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from bigbatch.layers import GhostBatchNorm2d, Quantizer, SplitBatchNorm2d, adversarial_stream
from bigbatch.optim import LAMB, LARS, SGDP, AdamP, Muon, SoapMuon
from bigbatch.optim.muon.newton_schulz import orthogonalise

SHAPES = [(8, 3, 3, 3), (8,), (16, 8), (16,)]
OURS = {
    "LARS": lambda ps, lr: LARS(ps, lr, weight_decay=0.01),
    "LARS, nesterov": lambda ps, lr: LARS(ps, lr, nesterov=True, lr_in_momentum=False),
    "LAMB": lambda ps, lr: LAMB(ps, lr, weight_decay=0.01),
    "AdamP": lambda ps, lr: AdamP(ps, lr, weight_decay=0.01),
    "SGDP": lambda ps, lr: SGDP(ps, lr, weight_decay=0.01, nesterov=True),
    "SoapMuon": lambda ps, lr: SoapMuon([{"params": [p], "orthogonalise": p.ndim > 1} for p in ps], lr, weight_decay=0.01),
    "Muon": lambda ps, lr: Muon([{"params": [p], "orthogonalise": p.ndim > 1} for p in ps], lr, weight_decay=0.01),
}
ON_CUDA = ("LARS", "LARS, nesterov", "LAMB")


def parameters(device, dtype):
    made = [torch.empty(s, device=device, dtype=dtype).requires_grad_() for s in SHAPES]
    for p in made:
        p.grad = torch.empty_like(p)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rate", ["number", "tensor"])
@pytest.mark.parametrize("name", OURS)
def test_a_step_needs_no_value(name, rate, dtype):
    device = "cuda" if name in ON_CUDA else "meta"
    with FakeTensorMode() if device == "cuda" else nullcontext(), torch.no_grad():
        ps = parameters(device, dtype)
        optimizer = OURS[name](ps, torch.empty((), device=device) if rate == "tensor" else 0.1)
        for _ in range(2):
            optimizer.step()
        assert {t.device.type for state in optimizer.state.values() for t in state.values()} == {device}


def test_layers_need_no_value():
    x = torch.empty(20, 4, 5, 5, device="meta", requires_grad=True)
    for layer in (GhostBatchNorm2d(4, ghost_batch=8, device="meta"), Quantizer(0.5).to("meta")):
        layer(x).sum().backward()
        assert layer.eval()(x).shape == x.shape
    split = SplitBatchNorm2d(4, ghost_batch=8, device="meta")
    with adversarial_stream(split, after=9):
        split(x).sum().backward()
    with FakeTensorMode(), torch.no_grad():
        assert orthogonalise(torch.empty(3, 8, 4, device="cuda")).shape == (3, 8, 4)


@pytest.mark.parametrize(
    "wrong", [lambda p: p.sum().item(), lambda p: p[p > 0], lambda p: bool((p > 0).any()), lambda p: p + torch.ones(3)]
)
def test_a_value_or_another_device_is_refused(wrong):
    refused = (DataDependentOutputException, DynamicOutputShapeException, RuntimeError)
    with FakeTensorMode(), torch.no_grad(), pytest.raises(refused, match="item|nonzero|data|device|_local_scalar_dense"):
        wrong(torch.empty(3, device="cuda"))
