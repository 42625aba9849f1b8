"""Optimizers on the GPU: against the CPU in float64, captured in a CUDA graph, and resumed."""

import io
import os

import pytest
import torch

from bigbatch.optim import LAMB, LARS, SGDP, AdamP, Muon, SoapMuon
from bigbatch.optim.muon.newton_schulz import orthogonalise

pytestmark = pytest.mark.gpu
DRY = os.environ.get("GPU_TESTS_ON") == "cpu"
LARGE = [(64, 3, 7, 7), (64,), (256, 64, 1, 1), (1000, 300), (1000,)]
SHAPES = [*([] if DRY else LARGE), (3, 5), (1,), (7, 4, 3, 3), (7,)]
MAKE = {
    "LARS": lambda ps, **more: LARS(ps, **{"lr": 1.0, "weight_decay": 1e-4} | more),
    "LARS, nesterov": lambda ps, **more: LARS(ps, **{"lr": 1.0, "nesterov": True, "lr_in_momentum": False} | more),
    "LARS, not adapted": lambda ps, **more: LARS(ps, **{"lr": 1.0, "adapt": False, "weight_decay": 1e-4} | more),
    "LAMB": lambda ps, **more: LAMB(ps, **{"lr": 1e-2, "weight_decay": 1e-2} | more),
    "LAMB, uncorrected": lambda ps, **more: LAMB(ps, **{"lr": 1e-2, "bias_correction": False, "maximize": True} | more),
    "AdamP": lambda ps, **more: AdamP(ps, **{"lr": 1e-2, "weight_decay": 1e-2} | more),
    "AdamP, projects all": lambda ps, **more: AdamP(ps, **{"lr": 1e-2, "delta": 100.0} | more),
    "SGDP": lambda ps, **more: SGDP(ps, **{"lr": 1e-2, "weight_decay": 1e-2} | more),
    "SGDP, nesterov": lambda ps, **more: SGDP(ps, **{"lr": 1e-2, "nesterov": True, "delta": 100.0} | more),
    "SoapMuon": lambda ps, **more: SoapMuon(
        [{"params": [p], "orthogonalise": p.ndim > 1} for p in ps], **{"lr": 1e-2, "weight_decay": 1e-2, "dtype": torch.float64} | more
    ),
    "Muon": lambda ps, **more: Muon(
        [{"params": [p], "orthogonalise": p.ndim > 1} for p in ps], **{"lr": 1e-2, "weight_decay": 1e-2, "dtype": torch.float64} | more
    ),
}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 4e-2}


def parameters(device, dtype, *, channels_last=False):
    chance = torch.Generator().manual_seed(0)
    made = []
    for shape in SHAPES:
        p = (torch.randn(shape, generator=chance, dtype=torch.float64) * 0.1).to(torch.bfloat16)  # the same start in every type
        p = p.to(device, dtype)
        made.append(p.to(memory_format=torch.channels_last) if channels_last and p.ndim == 4 else p)
    return [p.requires_grad_() for p in made]


def give_gradients(ps, step):
    chance = torch.Generator().manual_seed(1 + step)
    for p in ps:
        grad = torch.randn(p.shape, generator=chance, dtype=torch.float64).to(torch.bfloat16)
        p.grad = torch.empty_like(p).copy_(grad)


def trained(name, device, dtype, *, steps=5, channels_last=False, **more):
    ps = parameters(device, dtype, channels_last=channels_last)
    optimizer = MAKE[name](ps, **more)
    for step in range(steps):
        give_gradients(ps, step)
        optimizer.step()
    return ps


@pytest.mark.parametrize("channels_last", [True] if DRY else [False, True], ids=lambda last: "channels_last" if last else "contiguous")
@pytest.mark.parametrize("dtype", [torch.float32] if DRY else list(TOLERANCE), ids=str)
@pytest.mark.parametrize("name", MAKE)
def test_equals_the_cpu_in_float64(name, dtype, channels_last, device):
    wanted = trained(name, "cpu", torch.float64)
    got = trained(name, device, dtype, channels_last=channels_last)
    for w, p in zip(wanted, got, strict=True):
        moved = (p.detach().double().cpu() - w).norm() / w.norm()
        assert moved < TOLERANCE[dtype], (tuple(w.shape), float(moved))


@pytest.mark.parametrize("name", MAKE)
def test_a_rate_on_the_device_is_the_same_rate(name, device):
    rate = MAKE[name](parameters("cpu", torch.float32)).defaults["lr"]
    plain = trained(name, device, torch.float32)
    tensor = trained(name, device, torch.float32, lr=torch.full((), rate, device=device))
    for p, q in zip(plain, tensor, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MAKE)
def test_a_captured_step_follows_its_rate(name, cuda):
    """Capture, then replay with new gradients and another rate: as without a graph."""
    plain, captured = parameters(cuda, torch.float32), parameters(cuda, torch.float32)
    rates = [torch.full((), 0.01, device=cuda) for _ in range(2)]
    optimizers = [MAKE[name](ps, lr=rate) for ps, rate in zip((plain, captured), rates, strict=True)]
    for ps in (plain, captured):
        give_gradients(ps, 0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            optimizers[1].step()
    torch.cuda.current_stream().wait_stream(side)
    for _ in range(3):
        optimizers[0].step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizers[1].step()
    for step in range(1, 5):
        for ps, rate in zip((plain, captured), rates, strict=True):
            rate.fill_(0.01 / step)
            chance = torch.Generator().manual_seed(step)
            for p in ps:
                p.grad.copy_(torch.randn(p.shape, generator=chance))
        optimizers[0].step()
        graph.replay()
    for p, q in zip(plain, captured, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MAKE)
def test_repeats_and_resumes_bit_for_bit(name, device):
    whole, again = (trained(name, device, torch.float32, steps=6) for _ in range(2))
    ps = parameters(device, torch.float32)
    optimizer = MAKE[name](ps)
    for step in range(3):
        give_gradients(ps, step)
        optimizer.step()
    saved = io.BytesIO()
    torch.save({"weights": [p.detach() for p in ps], "optimizer": optimizer.state_dict()}, saved)
    saved.seek(0)
    state = torch.load(saved, map_location=device, weights_only=True)
    resumed = [w.requires_grad_() for w in state["weights"]]
    optimizer = MAKE[name](resumed)
    optimizer.load_state_dict(state["optimizer"])
    for step in range(3, 6):
        give_gradients(resumed, step)
        optimizer.step()
    for p, q, r in zip(whole, again, resumed, strict=True):
        assert torch.equal(p, q), "the same steps twice"
        assert torch.equal(p, r), "stopped and resumed"


@pytest.mark.parametrize("shape", [(3, 16, 200)] if DRY else [(4, 128, 64), (1, 512, 512), (3, 16, 200)])
def test_newton_schulz_in_bfloat16_is_near_that_in_float32(shape, device):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    low, high = orthogonalise(matrices.bfloat16()).float(), orthogonalise(matrices)
    assert (low - high).norm() / high.norm() < 0.05
    exact = orthogonalise(matrices.cpu().double())
    assert (high.cpu().double() - exact).norm() / exact.norm() < 1e-3
