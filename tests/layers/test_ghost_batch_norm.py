import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.ghost_batch_norm import ghost_batch_norm
from torch import nn

from bigbatch.core.checks import UserError
from bigbatch.layers import GhostBatchNorm, convert_batch_norm, ghost_groups


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


@pytest.mark.parametrize("ghost_batch", [8, 100, None])
def test_a_group_of_the_whole_batch_is_plain_batch_norm(ghost_batch):
    x = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    plain, ghost = nn.BatchNorm2d(3), GhostBatchNorm(3, ghost_batch=ghost_batch)
    assert torch.equal(plain(x), ghost(x))
    assert torch.equal(plain.running_var, ghost.running_var)


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
    assert len(sizes) == 1 or ghost / 2 <= sizes[-1] < 1.5 * ghost


def test_keeps_channels_last():
    x = torch.randn(8, 3, 4, 4).to(memory_format=torch.channels_last)
    assert GhostBatchNorm(3, ghost_batch=4)(x).is_contiguous(memory_format=torch.channels_last)


def test_bfloat16_input_under_autocast():
    layer = GhostBatchNorm(3, ghost_batch=4)
    assert layer(torch.randn(8, 3, 4, 4).bfloat16()).dtype == torch.bfloat16
    assert layer.running_mean.dtype == torch.float32


def test_a_plain_average_over_groups():
    layer = GhostBatchNorm(1, ghost_batch=2, momentum=None).double()
    layer(torch.tensor([[0.0], [2.0], [4.0], [6.0], [11.0], [13.0]], dtype=torch.float64))
    assert layer.running_mean.item() == pytest.approx((1 + 5 + 12) / 3)


def test_converting_a_model_keeps_its_parameters_and_buffers():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    state, parameters = model.state_dict(), list(model.parameters())
    convert_batch_norm(model, 16)
    assert [type(m) for m in (model[1], model[2][0])] == [GhostBatchNorm, GhostBatchNorm]
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    convert_batch_norm(model, 32)
    assert model[1].ghost_batch == 32


def test_refuses_an_empty_group():
    with pytest.raises(UserError, match="ghost_batch = 0: must be a finite number above zero"):
        GhostBatchNorm(3, ghost_batch=0)
