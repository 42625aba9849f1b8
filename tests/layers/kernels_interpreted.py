"""Ghost batch norm's kernels run by triton's interpreter on a CPU, beside torch's batch norm of each group in float64.

Run by test_kernels.py with TRITON_INTERPRET=1.
"""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bigbatch.core.hardware import kernels as core_kernels
from bigbatch.layers import convert_batch_norm, ghost_groups, group_kernels


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    """The kernels are what every layer uses."""
    monkeypatch.setattr(core_kernels, "DEVICES", {"cpu"})
    monkeypatch.setattr(core_kernels, "_tried", {("ghost batch norm", None, torch.device("cpu"))})
    monkeypatch.setattr(core_kernels, "_failed", set())


def batch_norm(shape, **options):
    torch.manual_seed(0)
    layer = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)](shape[1], **options)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return layer


def assert_equal_to_torch(layer, x, slope, *, rtol=1e-5, atol=1e-4):
    """Outputs, gradients and buffers after two passes."""
    mine, exact = convert_batch_norm(deepcopy(layer), 4), deepcopy(layer).double()
    for sign in (1, -1):
        own = (sign * x).detach().requires_grad_(x.requires_grad)
        true = own.detach().double().requires_grad_(x.requires_grad)
        got, want = mine(own), torch.cat([exact(group) for group in true.split(ghost_groups(len(x), 4))])
        assert (got.dtype, got.stride()) == (x.dtype, x.stride())
        tolerance = {"rtol": rtol, "atol": atol, "check_dtype": False}
        torch.testing.assert_close(got, want, **tolerance)
        if got.requires_grad:
            got.backward(slope)
            want.backward(slope.double())
        if x.requires_grad:
            torch.testing.assert_close(own.grad, true.grad, **tolerance)
        for a, b in zip([*mine.parameters()], [*exact.parameters()], strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=rtol, atol=5 * atol, check_dtype=False)
        for a, b in zip(mine.buffers(), exact.buffers(), strict=True):
            torch.testing.assert_close(a, b, **tolerance)


KINDS = ["plain", "channels last", "no affine", "no shift", "untracked", "average", "frozen input", "far from zero"]
SHAPES = [(9, 70), (9, 3, 4, 5), (9, 3, 2, 3, 2)]


@pytest.mark.parametrize(("shape", "kind"), [*((shape, "plain") for shape in SHAPES[::2]), *((SHAPES[1], kind) for kind in KINDS)])
def test_equals_torch_group_by_group(shape, kind):
    options = {"affine": kind != "no affine", "track_running_stats": kind != "untracked"}
    layer = batch_norm(shape, momentum=None if kind == "average" else 0.3, **options)
    if kind == "no shift":
        layer.register_parameter("bias", None)
    x, slope = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    far = kind == "far from zero"
    x = 100 + x if far else x
    if kind == "channels last" and len(shape) > 3:
        x = x.to(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
    assert_equal_to_torch(layer, x.requires_grad_(kind != "frozen input"), slope, **({"rtol": 1e-4, "atol": 1e-3} if far else {}))


def test_groups_of_many_tiles_and_stretches(monkeypatch):
    """Small tiles: each group takes several, shared out over several programs, of which the last have less or nothing."""
    monkeypatch.setattr(group_kernels, "TILE", 16)
    monkeypatch.setattr(group_kernels, "PROGRAMS", 12)
    for shape in ((5, 2, 5, 3), (9, 3)):
        x, slope = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
        assert group_kernels.Shape.of(group_kernels.three_axes(x), ghost_groups(len(x), 4)).splits > 1
        assert_equal_to_torch(batch_norm(shape), x.requires_grad_(), slope)
        if len(shape) == 4:
            assert_equal_to_torch(batch_norm(shape), x.detach().to(memory_format=torch.channels_last).requires_grad_(), slope)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_beside_float32_parameters(dtype):
    x, slope = torch.randn(2, 8, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    step = torch.finfo(dtype).eps
    assert_equal_to_torch(batch_norm(x.shape), x.requires_grad_(), slope, rtol=2 * step, atol=2 * step)


def test_gradients_lying_otherwise_and_of_one_value():
    shape = (9, 3, 4, 5)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for slope in (torch.ones(()).expand(shape), torch.randn(5, 4, 3, 9).permute(3, 2, 1, 0)):
        assert_equal_to_torch(batch_norm(shape), x, slope)


def test_the_same_input_gives_the_same_bits():
    x, slope = torch.randn(2, 9, 3, 5, generator=torch.Generator().manual_seed(0))
    layer = convert_batch_norm(batch_norm(x.shape), 4)
    results = []
    for _ in range(2):
        own = x.clone().requires_grad_()
        results.append((out := layer(own), *torch.autograd.grad(out, [own, *layer.parameters()], slope)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_second_derivatives_are_torchs():
    x = torch.randn(9, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    layer = batch_norm(x.shape)
    both = []
    for its in (convert_batch_norm(deepcopy(layer), 4), lambda x: torch.cat([layer(g) for g in x.split([4, 5])])):
        (slope,) = torch.autograd.grad(its(x).pow(3).sum(), x, create_graph=True)
        both.append(torch.autograd.grad(slope.square().sum(), x)[0])
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-5)


class Launches(TorchDispatchMode):
    """Operations that a device would launch: all but views and new memory."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view and not func.name().startswith(("aten::empty", "aten::_unsafe_view", "aten::detach")):
            self.names.append(func.name())
        return result


class Counted:
    """Stands for a kernel, and only counts."""

    def __init__(self, name, names):
        self.name, self.names = name, names

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.names.append(self.name)


def test_eight_launches_at_most_whatever_the_number_of_groups(monkeypatch):
    """Forward, backward and running statistics; torch's batch norm needs four, and group by group it was 129 for 32 groups."""
    x = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for momentum in (0.1, None):
        layer = convert_batch_norm(batch_norm(x.shape, momentum=momentum), 2)
        with monkeypatch.context() as patch, Launches() as launches:
            for name in ("sum_up", "normalise", "follow", "sum_up_gradient", "gradient"):
                patch.setattr(group_kernels, name, Counted(name, launches.names))
            torch.autograd.grad(layer(x), [x, *layer.parameters()], x.detach())
        assert len(launches.names) <= 8, launches.names
        assert not any("_local_scalar_dense" in name for name in launches.names)  # nor is the device waited for


def test_trying_out_finds_a_wrong_kernel(monkeypatch):
    """The kernels are left out, and a training goes on."""
    group_kernels.try_out(torch.device("cpu"))
    forward = group_kernels.forward
    monkeypatch.setattr(group_kernels, "forward", lambda *of: (lambda y, s: (y * 1.01, s))(*forward(*of)))
    monkeypatch.setattr(core_kernels, "_tried", set())
    x = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    layer = convert_batch_norm(batch_norm(x.shape), 4)
    with pytest.warns(UserWarning, match=r"the kernels of ghost batch norm do not work on cpu \(ArithmeticError: off by .*: groups are"):
        outputs = [layer(x), layer(x)]  # a second warning would be an error
    with core_kernels.without_kernels():
        assert all(torch.equal(output, layer(x)) for output in outputs)
