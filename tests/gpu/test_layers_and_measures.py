"""Ghost and split batch norm, the noise monitor and products with curvature matrices on the GPU, beside the CPU in float64."""

import copy
import os

import pytest
import torch
from torch import nn

from bigbatch.curvature import GaussNewton, Hessian, top_eigenvalues
from bigbatch.layers import GhostBatchNorm1d, GhostBatchNorm2d, SplitBatchNorm2d, adversarial_stream
from bigbatch.noise.monitor import ALL, NoiseScaleMonitor, layers_of

pytestmark = pytest.mark.gpu
ON = os.environ.get("GPU_TESTS_ON", "cuda")


def passed(layer, x, dy):
    """Output, gradients and running statistics of a training pass, in float64 on the CPU."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    y.backward(dy.to(y))
    found = [y, x.grad, layer.running_mean, layer.running_var]
    found += [p.grad for p in layer.parameters() if p.grad is not None]
    return [t.detach().double().cpu() for t in found]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_samples", [64, 50, 7, 33] if ON == "cuda" else [50])
def test_ghost_batch_norm_equals_the_cpu(num_samples, dtype, memory_format, device):
    chance = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(num_samples, 8, 6, 6, generator=chance, dtype=torch.float64) * 2 + 1 for _ in range(2))
    x, dy = x.to(dtype), dy.to(dtype)
    layer = GhostBatchNorm2d(8, ghost_batch=16)
    other = copy.deepcopy(layer).to(device, torch.float64 if dtype == torch.float64 else torch.float32)
    wanted = passed(layer.double(), x.double(), dy.double())
    got = passed(other, x.to(device).to(memory_format=memory_format), dy.to(device))
    tolerance = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 3e-2}[dtype]
    for w, g in zip(wanted, got, strict=True):
        assert (w - g).norm() <= tolerance * (w.norm() + 1e-6)
    evaluated = [m.eval()(t).double().cpu() for m, t in ((layer, x.double()), (other, x.to(device)))]
    assert (evaluated[0] - evaluated[1]).norm() <= tolerance * evaluated[0].norm()


def test_ghost_batch_norm_of_vectors_repeats(device):
    x, dy = torch.randn(96, 32).to(device), torch.randn(96, 32).to(device)
    first, second = (passed(GhostBatchNorm1d(32, ghost_batch=32).to(device), x, dy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_split_batch_norm_equals_the_cpu(device):
    x, dy = torch.randn(40, 4, 5, 5), torch.randn(40, 4, 5, 5)
    layer = SplitBatchNorm2d(4, ghost_batch=8)
    other = copy.deepcopy(layer).to(device)
    with adversarial_stream(layer, after=20), adversarial_stream(other, after=20):
        wanted, got = passed(layer, x, dy), passed(other, x.to(device), dy.to(device))
    for w, g in zip(wanted, got, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-3, atol=1e-4)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(288, 16), nn.Tanh(), nn.Linear(16, 5))


def data():
    chance = torch.Generator().manual_seed(2)
    return torch.randn(64, 1, 8, 8, generator=chance), torch.randint(5, (64,), generator=chance)


def losses(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def test_the_noise_monitor_measures_what_it_does_on_the_cpu(device):
    found = []
    for place in ("cpu", device):
        model = network().double().to(place)
        x, y = (t.to(place) for t in data())
        x, monitor = x.double(), NoiseScaleMonitor(model, parts=layers_of(model), along=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            for inputs, targets in zip(x.chunk(4), y.chunk(4), strict=True):
                (losses(model(inputs), targets).sum() / 64).backward()
                monitor.micro_batch(len(inputs), divisor=64)
            monitor.update()
            optimizer.step()
            optimizer.zero_grad()
        found.append(monitor.flush())
    for cpu, gpu in zip(*found, strict=True):
        assert ALL in gpu.parts
        assert gpu.parts.keys() == cpu.parts.keys()
        for name, scale in cpu.parts.items():
            assert gpu.parts[name] == pytest.approx(scale, rel=1e-8, abs=1e-12)
        assert gpu.noise_along == pytest.approx(cpu.noise_along, rel=1e-7, nan_ok=True)


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_products_with_curvature_matrices_equal_the_cpus(kind, device):
    x, y = data()
    operators = []
    for place in ("cpu", device):
        model = network().double().to(place)
        operators.append(
            kind(model, losses, [(x[:40].double().to(place), y[:40].to(place)), (x[40:].double().to(place), y[40:].to(place))])
        )
    v = torch.randn(3, operators[0].size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(operators[1](v.to(device)).cpu(), operators[0](v), rtol=1e-8, atol=1e-10)
    top = [top_eigenvalues(operator, 2).values.cpu() for operator in operators]
    torch.testing.assert_close(top[1], top[0], rtol=1e-4, atol=1e-6)
