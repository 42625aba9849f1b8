from copy import deepcopy

import numpy as np
import pytest
import torch
from tests.reference.ghost_batch_norm import ghost_batch_norm
from torch import nn

from bigbatch.core.checks import UserError
from bigbatch.layers import (
    GhostBatchNorm,
    SplitBatchNorm,
    adversarial_stream,
    convert_batch_norm,
    convert_split_batch_norm,
    drop_auxiliary,
    ghost_groups,
    main_state_dict,
)


def small_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))


def test_hand_worked():  # main sees 0 and 2, the auxiliary 10 and 14: means 1 and 12, unbiased variances 2 and 8
    layer = SplitBatchNorm(1, ghost_batch=None, eps=1e-12).double()
    main, other = torch.tensor([[0.0], [2.0]]).double(), torch.tensor([[10.0], [14.0]]).double()
    assert layer(main).flatten().tolist() == pytest.approx([-1, 1])
    with adversarial_stream(layer):
        assert layer(other).flatten().tolist() == pytest.approx([-1, 1])
    assert (layer.running_mean.item(), layer.running_var.item()) == pytest.approx((0.1, 0.9 + 0.2))
    assert (layer.auxiliary.running_mean.item(), layer.auxiliary.running_var.item()) == pytest.approx((1.2, 0.9 + 0.8))


def test_each_stream_equals_the_literal_algorithm_for_100_steps():
    generator = torch.Generator().manual_seed(0)
    layer = SplitBatchNorm(3, ghost_batch=4).double()
    for stream in (layer, layer.auxiliary):
        nn.init.uniform_(stream.weight)
        nn.init.uniform_(stream.bias)
    state = [(np.zeros(3), np.ones(3))] * 2
    for _ in range(100):
        x = torch.randn(18, 3, generator=generator, dtype=torch.float64) * 3 + 1
        with adversarial_stream(layer, after=8):
            got = layer(x).detach().numpy()
        want = []
        for i, (stream, part) in enumerate([(layer, x[:8]), (layer.auxiliary, x[8:])]):
            gamma, beta = stream.weight.detach().numpy(), stream.bias.detach().numpy()
            out, *state[i] = ghost_batch_norm(part.numpy(), ghost_groups(len(part), 4), gamma, beta, layer.eps, *state[i], layer.momentum)
            want.append(out)
        np.testing.assert_allclose(got, np.concatenate(want), rtol=1e-10, atol=1e-12)
    for (mean, var), stream in zip(state, (layer, layer.auxiliary), strict=True):
        np.testing.assert_allclose(stream.running_mean.numpy(), mean, rtol=1e-10)
        np.testing.assert_allclose(stream.running_var.numpy(), var, rtol=1e-10)


def test_one_pass_with_both_streams_equals_two_passes():
    one = convert_split_batch_norm(small_model().double())
    two = deepcopy(one)
    x = torch.randn(12, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with adversarial_stream(one, after=8):
        joint = one(x)
    clean = two(x[:8])
    with adversarial_stream(two):
        adversarial = two(x[8:])
    torch.testing.assert_close(joint, torch.cat([clean, adversarial]), rtol=1e-12, atol=1e-12)
    joint.square().sum().backward()
    (clean.square().sum() + adversarial.square().sum()).backward()
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-10)
    for p, q in zip(one.buffers(), two.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_the_streams_leave_each_other_alone():
    model = convert_split_batch_norm(small_model())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with adversarial_stream(model):
        model(torch.randn(4, 1, 8, 8)).sum().backward()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"{i}.auxiliary.{name}" for i in (1, 4) for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert model[1].weight.grad is None
    assert model[1].auxiliary.weight.grad is not None


def test_evaluation_is_that_of_the_main_stream_unless_asked():
    model = convert_split_batch_norm(small_model())
    plain = small_model()
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model(x), plain(x)
    with adversarial_stream(model):
        model(3 * x + 1)
    model.eval(), plain.eval()
    assert torch.equal(model(x[:1]), plain(x[:1]))
    with adversarial_stream(model):
        assert not torch.equal(model(x[:1]), plain(x[:1]))


def test_the_stream_is_the_one_before_after_an_error_and_may_be_nested():
    layer = SplitBatchNorm(2, ghost_batch=None)
    with adversarial_stream(layer):
        with adversarial_stream(layer, after=3):
            assert layer.num_clean == 3
        assert layer.num_clean == 0
    with pytest.raises(ZeroDivisionError), adversarial_stream(layer):
        _ = 1 / 0
    assert layer.num_clean is None


def test_conversion_keeps_parameters_groups_and_mode_and_is_undone():
    model = convert_batch_norm(small_model(), 4).eval()
    state, parameters = model.state_dict(), list(model.parameters())
    convert_split_batch_norm(model)
    assert isinstance(model[1], SplitBatchNorm)
    assert model[1].ghost_batch == model[1].auxiliary.ghost_batch == 4
    assert not model[1].training
    assert not model[1].auxiliary.training
    assert model[1].weight is parameters[2]
    assert model[1].auxiliary.weight is not parameters[2]
    assert all(torch.equal(state[key], value) for key, value in main_state_dict(model.state_dict()).items())
    assert convert_split_batch_norm(model)[1] is model[1]
    convert_batch_norm(model, 2)
    assert type(model[1]) is SplitBatchNorm
    assert model[1].ghost_batch == model[1].auxiliary.ghost_batch == 2
    drop_auxiliary(model)
    assert type(model[1]) is GhostBatchNorm
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert model.state_dict().keys() == state.keys()


def test_a_layer_in_two_places_is_split_once_and_a_lone_layer_too():
    norm = nn.BatchNorm1d(3)
    model = convert_split_batch_norm(nn.ModuleDict({"a": norm, "b": nn.Sequential(norm)}))
    assert isinstance(model["a"], SplitBatchNorm)
    assert model["a"] is model["b"][0]
    assert isinstance(convert_split_batch_norm(norm), SplitBatchNorm)


def test_a_mixed_precision_layer_keeps_its_types():
    norm = nn.BatchNorm2d(3)
    norm.weight.data = norm.weight.data.bfloat16()
    split = convert_split_batch_norm(norm)
    assert split.auxiliary.weight.dtype == torch.bfloat16
    assert split.auxiliary.running_mean.dtype == torch.float32


def test_checkpoints_go_both_ways():
    plain = small_model(1)
    plain(torch.randn(8, 1, 8, 8))
    split = convert_split_batch_norm(small_model(2))
    split.load_state_dict(plain.state_dict())
    for key, value in plain.state_dict().items():
        assert torch.equal(split.state_dict()[key], value)
    assert torch.equal(split[1].auxiliary.running_mean, plain[1].running_mean)
    with adversarial_stream(split):
        split(torch.randn(8, 1, 8, 8))
    again = convert_split_batch_norm(small_model(3))
    again.load_state_dict(split.state_dict())
    assert all(torch.equal(again.state_dict()[key], value) for key, value in split.state_dict().items())
    plain.load_state_dict(main_state_dict(split.state_dict()))
    incomplete = {key: value for key, value in split.state_dict().items() if key != "1.auxiliary.weight"}
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"1.auxiliary.weight\""):
        again.load_state_dict(incomplete)


def test_keeps_channels_last_and_half_precision():
    layer = SplitBatchNorm(3, ghost_batch=2)
    x = torch.randn(8, 3, 4, 4).bfloat16().to(memory_format=torch.channels_last)
    with adversarial_stream(layer, after=4):
        out = layer(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.dtype == torch.bfloat16


def test_bad_streams_are_refused():
    layer = SplitBatchNorm(2, ghost_batch=None)
    with pytest.raises(UserError, match=r"after = 4: must be smaller than the 4 samples of the pass"), adversarial_stream(layer, after=4):
        layer(torch.randn(4, 2))
    with pytest.raises(UserError, match=r"after = -1: must not be negative"), adversarial_stream(layer, after=-1):
        pass
    with pytest.raises(UserError, match=r"batch norm '1': is not split.*call convert_split_batch_norm"), adversarial_stream(small_model()):
        pass
    with adversarial_stream(nn.Linear(2, 2)):
        pass
