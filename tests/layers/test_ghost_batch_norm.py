from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.ghost_batch_norm import ghost_batch_norm
from torch import nn

from bigbatch.core.checks import UserError
from bigbatch.layers import GhostBatchNorm, GhostBatchNorm2d, convert_batch_norm, convert_split_batch_norm, drop_auxiliary, ghost_groups


def test_hand_worked():  # groups (0, 2) and (10, 12), each mean +-1; running mean 0.1 * 1 * 0.9 + 0.1 * 11 = 1.19
    layer = GhostBatchNorm(1, ghost_batch=2, eps=1e-12).double()
    out = layer(torch.tensor([[0.0], [2.0], [10.0], [12.0]], dtype=torch.float64))
    assert out.flatten().tolist() == pytest.approx([-1, 1, -1, 1])
    assert layer.running_mean.item() == pytest.approx(1.19)
    assert layer.running_var.item() == pytest.approx(0.9 * (0.9 + 0.1 * 2) + 0.1 * 2)
    assert layer.num_batches_tracked == 2


@pytest.mark.parametrize("n", [12, 14, 16, 21])
def test_equals_the_literal_algorithm_for_100_steps(n):
    generator = torch.Generator().manual_seed(n)
    layer = GhostBatchNorm(3, ghost_batch=4).double()
    nn.init.uniform_(layer.weight)
    nn.init.uniform_(layer.bias)
    gamma, beta = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    mean, var = np.zeros(3), np.ones(3)
    for _ in range(100):
        x = torch.randn(n, 3, generator=generator, dtype=torch.float64) * 3 + 1
        want, mean, var = ghost_batch_norm(x.numpy(), ghost_groups(n, 4), gamma, beta, layer.eps, mean, var, layer.momentum)
        np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-10)
    np.testing.assert_allclose(layer.running_var.numpy(), var, rtol=1e-10)


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
@pytest.mark.parametrize("n", [12, 14, 17])
def test_running_statistics_equal_the_closed_form(n, momentum):
    generator = torch.Generator().manual_seed(n)
    layer = GhostBatchNorm2d(3, ghost_batch=4, momentum=momentum).double()
    means, variances = [], []
    for _ in range(5):
        x = torch.randn(n, 3, 2, 2, generator=generator, dtype=torch.float64) * 3 + 1
        layer(x)
        means += [group.mean((0, 2, 3)) for group in x.split(ghost_groups(n, 4))]
        variances += [group.var((0, 2, 3)) for group in x.split(ghost_groups(n, 4))]
    k = len(means)
    weights = [1 / k] * k if momentum is None else [(1 - momentum) ** (k - i) * momentum for i in range(1, k + 1)]
    rest = 0.0 if momentum is None else (1 - momentum) ** k
    torch.testing.assert_close(layer.running_mean, sum(w * m for w, m in zip(weights, means, strict=True)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        layer.running_var, rest + sum(w * v for w, v in zip(weights, variances, strict=True)), rtol=1e-12, atol=1e-12
    )
    assert layer.num_batches_tracked == k


@pytest.mark.parametrize("ghost_batch", [8, 100, None])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_group_of_the_whole_batch_is_plain_batch_norm(ghost_batch, memory_format, momentum):
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, 8, 3, 5, 5, generator=generator)
    plain, ghost = nn.BatchNorm2d(3, momentum=momentum), GhostBatchNorm2d(3, ghost_batch=ghost_batch, momentum=momentum)
    inputs = [x.to(memory_format=memory_format).detach().clone().requires_grad_() for _ in range(2)]
    for layer, its in zip((plain, ghost), inputs, strict=True):
        layer(its).backward(grad)
        layer(its.detach())
    assert torch.equal(plain(x), ghost(x))
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    for mine, theirs in zip(ghost.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
    for key, value in plain.state_dict().items():
        assert torch.equal(ghost.state_dict()[key], value)


def by_torch(layer, x, sizes):
    """What torch's own batch norm gives, group by group."""
    return torch.cat([layer(group) for group in x.split(sizes)])


@pytest.mark.parametrize("shape", [(12, 3), (14, 3, 5), (9, 3, 4, 5), (13, 3, 2, 3, 2)])
@pytest.mark.parametrize(
    "kind", ["plain", "transposed", "sliced", "expanded gradient", "no affine", "untracked", "frozen input", "channels last"]
)
def test_equals_torch_group_by_group(shape, kind):
    generator = torch.Generator().manual_seed(0)
    options = {"affine": kind != "no affine", "track_running_stats": kind != "untracked"}
    torch_layer = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)](3, **options)
    mine = convert_batch_norm(deepcopy(torch_layer), 4)
    x, grad = torch.randn(2, *shape, generator=generator)
    if kind == "transposed":
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    if kind == "sliced":
        x = torch.randn(shape[0], 6, *shape[2:], generator=generator)[:, ::2]
    if kind == "channels last" and len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    if kind == "expanded gradient":
        grad = torch.ones(()).expand(shape)
    inputs = [x.detach().requires_grad_(kind != "frozen input") for _ in range(2)]
    outputs = [mine(inputs[0]), by_torch(torch_layer, inputs[1], ghost_groups(shape[0], 4))]
    torch.testing.assert_close(*outputs, rtol=0, atol=0)
    if outputs[0].requires_grad:
        for output in outputs:
            output.backward(grad)
    if inputs[0].requires_grad:
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=0, atol=0)
    for p, q in zip(mine.parameters(), torch_layer.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-5)
    for p, q in zip(mine.buffers(), torch_layer.buffers(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("affine", [True, False])
def test_gradients_and_their_gradients_are_right(affine):
    generator = torch.Generator().manual_seed(0)
    layer = GhostBatchNorm(2, ghost_batch=3, affine=affine, track_running_stats=False).double()
    x = torch.randn(7, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)

    def output(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(("weight", "bias"), parameters, strict=False)), (x,))

    inputs = (x, *(torch.rand(2, dtype=torch.float64, generator=generator).requires_grad_() for _ in layer.parameters()))
    assert torch.autograd.gradcheck(output, inputs)
    assert torch.autograd.gradgradcheck(output, inputs)


def test_compiled_it_is_the_same():
    layer = GhostBatchNorm2d(3, ghost_batch=4)
    x = torch.randn(10, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.compile(deepcopy(layer), backend="eager")(x), layer(x))


@pytest.mark.parametrize("n", [1, 3, 8, 31])
def test_evaluation_never_splits_and_takes_any_batch(n):
    layer = GhostBatchNorm(3, ghost_batch=8)
    layer(torch.randn(32, 3, 2, 2, generator=torch.Generator().manual_seed(0)))
    layer.eval()
    x = torch.randn(n, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    plain = nn.BatchNorm2d(3).eval()
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), plain(x))


@given(n=st.integers(1, 2000), ghost=st.integers(1, 300))
def test_groups_sum_up_and_the_last_is_never_tiny(n, ghost):
    sizes = ghost_groups(n, ghost)
    assert sum(sizes) == n
    assert all(size == ghost for size in sizes[:-1])
    assert len(sizes) == 1 or ghost / 2 <= sizes[-1] <= 1.5 * ghost
    assert 1 not in sizes or n == 1 or ghost == 1


def test_keeps_channels_last():
    x = torch.randn(8, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    out = GhostBatchNorm(3, ghost_batch=4)(x)
    out.backward(torch.randn(8, 3, 4, 4))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_bfloat16_inputs_meet_float32_statistics():
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    layer, plain = GhostBatchNorm2d(3, ghost_batch=4), nn.BatchNorm2d(3)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    out.sum().backward()
    assert torch.equal(out, by_torch(plain, x.detach(), [4, 4]))
    assert (out.dtype, x.grad.dtype, layer.weight.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert torch.equal(layer.running_mean, plain.running_mean)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_in_half_precision(dtype):
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(GhostBatchNorm2d(3, ghost_batch=4, dtype=dtype)(x), by_torch(nn.BatchNorm2d(3, dtype=dtype), x, [4, 4]))


def test_a_plain_average_over_groups():
    layer = GhostBatchNorm(1, ghost_batch=2, momentum=None).double()
    layer(torch.tensor([[0.0], [2.0], [4.0], [6.0], [11.0], [13.0]], dtype=torch.float64))
    assert layer.running_mean.item() == pytest.approx((1 + 5 + 12) / 3)


def test_converting_a_model_keeps_its_parameters_and_buffers():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    state, parameters = model.state_dict(), list(model.parameters())
    convert_batch_norm(model, 16)
    assert [type(m) for m in (model[1], model[2][0])] == [GhostBatchNorm2d, GhostBatchNorm2d]
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    convert_batch_norm(model, 32)
    assert model[1].ghost_batch == 32


def test_checkpoints_go_both_ways():
    plain, ghost = nn.BatchNorm2d(3), GhostBatchNorm2d(3, ghost_batch=4)
    ghost(torch.randn(8, 3, 2, 2))
    plain.load_state_dict(ghost.state_dict())
    GhostBatchNorm2d(3, ghost_batch=2).load_state_dict(plain.state_dict())
    assert plain.num_batches_tracked == 2


def test_a_layer_is_still_what_torch_calls_it():
    for torchs in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        assert isinstance(convert_batch_norm(torchs(3), 4), torchs)
    assert type(convert_batch_norm(nn.SyncBatchNorm(3), 4)) is GhostBatchNorm
    with pytest.raises(ValueError, match="expected 4D input"):
        GhostBatchNorm2d(3, ghost_batch=4)(torch.randn(8, 3))
    with pytest.raises(ValueError, match=r"input of shape \(3,\): must have samples and channels"):
        GhostBatchNorm(3, ghost_batch=4)(torch.randn(3))


def test_a_layer_without_a_size_yet_is_refused():
    with pytest.raises(UserError, match="LazyBatchNorm2d: has no size yet; pass one input"):
        convert_batch_norm(nn.Sequential(nn.LazyBatchNorm2d()), 4)


@pytest.mark.parametrize("ghost_batch", [1, 0, -3])
def test_refuses_a_group_of_one(ghost_batch):
    model = nn.Sequential(nn.BatchNorm1d(3))
    for refused in (lambda: GhostBatchNorm(3, ghost_batch=ghost_batch), lambda: convert_batch_norm(model, ghost_batch)):
        with pytest.raises(UserError, match=rf"ghost_batch = {ghost_batch}: must be 2 or more, since .*; give the batch that"):
            refused()
    assert type(model[0]) is nn.BatchNorm1d


def test_without_running_statistics_evaluation_takes_the_whole_input():
    """It used to split, so that the order of samples changed their outputs."""
    torch.manual_seed(0)
    layer, plain = GhostBatchNorm2d(3, ghost_batch=4, track_running_stats=False).eval(), nn.BatchNorm2d(3, track_running_stats=False).eval()
    x, order = torch.randn(12, 3, 5, 5).cumsum(0), torch.randperm(12)
    torch.testing.assert_close(layer(x), plain(x))
    torch.testing.assert_close(layer(x[order]), layer(x)[order])
    assert not torch.allclose(layer.train()(x), plain(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch's own rules of derivatives
@pytest.mark.parametrize("training", [False, True])
def test_forward_mode_derivatives(training):
    """`torch.func.jvp` raised. Against a finite difference."""
    torch.manual_seed(0)
    layer = GhostBatchNorm(3, ghost_batch=4, track_running_stats=False, dtype=torch.float64).train(training)
    x, v = torch.randn(12, 3, dtype=torch.float64), torch.randn(12, 3, dtype=torch.float64)
    value, slope = torch.func.jvp(layer, (x,), (v,))
    torch.testing.assert_close(value, layer(x))
    torch.testing.assert_close(slope, (layer(x + 1e-6 * v) - layer(x - 1e-6 * v)) / 2e-6, rtol=1e-6, atol=1e-7)
    with torch.autograd.forward_ad.dual_level():
        dual = layer(torch.autograd.forward_ad.make_dual(x, v))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, slope)


def test_without_a_shift():
    """As torch's own, which takes `bias` since 2.13."""
    torch.manual_seed(0)
    layer = GhostBatchNorm2d(3, ghost_batch=4, bias=False)
    assert layer.bias is None
    assert set(layer.state_dict()) == set(nn.BatchNorm2d(3).state_dict()) - {"bias"}
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x = torch.randn(8, 3, 5, 5, requires_grad=True)
    want = torch.cat([nn.functional.batch_norm(part, None, None, layer.weight, training=True) for part in x.split(4)])
    got = layer(x)
    torch.testing.assert_close(got, want)
    grads = [
        torch.autograd.grad(y.square().sum(), [x, layer.weight], retain_graph=True)
        for y in (got * torch.arange(8)[:, None, None, None], want * torch.arange(8)[:, None, None, None])
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("affine", [True, False])
def test_converting_keeps_a_missing_shift(affine):
    old = nn.BatchNorm2d(3, affine=affine)
    if affine:
        old.register_parameter("bias", None)
    new = convert_batch_norm(nn.Sequential(old), 4)[0]
    assert (new.weight is None, new.bias) == (not affine, None)
    split = convert_split_batch_norm(nn.Sequential(new))[0]
    assert (split.auxiliary.weight is None, split.auxiliary.bias) == (not affine, None)
    assert drop_auxiliary(nn.Sequential(split))[0].bias is None


def test_compiled_it_takes_batches_of_other_sizes():
    """In one graph: a second size is a symbol, which was not taken for a number above zero."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(3, 3), GhostBatchNorm(3, ghost_batch=4, track_running_stats=False))
    for dynamic in (None, True):
        torch._dynamo.reset()
        compiled = torch.compile(layer, backend="aot_eager", dynamic=dynamic, fullgraph=True)
        for n in (8, 12, 10, 9, 3):
            x = torch.randn(n, 3)
            torch.testing.assert_close(compiled(x), layer(x))
