from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.precise_statistics import precise_statistics
from torch import nn

from bigbatch.core.checks import UserError
from bigbatch.layers import adversarial_stream, convert_batch_norm, convert_split_batch_norm, recompute_statistics
from bigbatch.layers.precise_statistics import population, power_sums


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)).double()


def images(n, seed=0):
    return torch.randn(n, 1, 7, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 1


def test_hand_worked():  # batches (0, 2) and (4, 4, 4, 4): mean 18/6 = 3, variance (0 + 4 + 4 * 16)/6 - 9 = 14/6
    layer = nn.BatchNorm1d(1).double()
    recompute_statistics(layer, [torch.tensor([[0.0], [2.0]]).double(), torch.full((4, 1), 4.0).double()])
    assert layer.running_mean.item() == pytest.approx(3)
    assert layer.running_var.item() == pytest.approx(14 / 6)


@pytest.mark.parametrize("ghost_batch", [4, None])
def test_equals_the_literal_formula(ghost_batch):
    model = convert_batch_norm(network(), ghost_batch)
    batches = list(images(24).split(8))
    expected = precise_statistics(model, batches, ghost_batch or 8)
    recompute_statistics(model, batches)
    for index, (mean, var) in expected.items():
        torch.testing.assert_close(model[index].running_mean, mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(model[index].running_var, var, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(1, 19), max_size=4), seed=st.integers(0, 1000), offset=st.sampled_from([0.0, 1e4]))
def test_the_first_layer_gets_the_moments_of_all_its_inputs_however_they_are_cut(cuts, seed, offset):
    x = torch.randn(20, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + offset
    layer = nn.BatchNorm1d(3).double()
    recompute_statistics(layer, x.tensor_split(sorted(set(cuts))))
    torch.testing.assert_close(layer.running_mean, x.mean((0, 2)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.running_var, x.var((0, 2), correction=0), rtol=1e-7, atol=1e-7)


def test_sums_of_two_workers_are_those_of_one():
    x = torch.randn(10, 3, dtype=torch.float64)
    torch.testing.assert_close(power_sums(x), power_sums(x[:4]) + power_sums(x[4:]), rtol=1e-12, atol=1e-12)
    mean, var = population(power_sums(x))
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(var, x.var(0, correction=0))


def test_workers_add_up_once_and_one_may_have_nothing():
    model = convert_batch_norm(network(), 4)
    alone, idle, parts = deepcopy(model), deepcopy(model), []
    recompute_statistics(alone, images(16).split(8))
    recompute_statistics(deepcopy(model), images(16)[:8].split(8), add_up=parts.append)
    recompute_statistics(model, images(16)[8:].split(8), add_up=lambda sums: (parts.append(sums.clone()), sums.add_(parts[0])))
    recompute_statistics(idle, [], add_up=lambda sums: sums.add_(parts[0] + parts[1]))
    for one in (model, idle):
        for got, expected in zip(one.buffers(), alone.buffers(), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_all_else_stays_as_it_was():
    model = nn.Sequential(network(), nn.Dropout(0.5), nn.BatchNorm2d(2, track_running_stats=False)).double().eval()
    model[0][2].train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    recompute_statistics(model, images(8).split(4))
    assert torch.equal(torch.get_rng_state(), state)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"0.{i}.running_{what}" for i in (1, 4) for what in ("mean", "var")}
    assert [m.training for m in model.modules()] == [m is model[0][2] for m in model.modules()]
    assert model[0][1].track_running_stats
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_after_an_error_too():
    model = network()
    with pytest.raises(RuntimeError, match="to have 1 channels"):
        recompute_statistics(model, [images(8), torch.zeros(8, 2, 7, 7, dtype=torch.float64)])
    assert model[1].track_running_stats
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_each_stream_of_a_split_model_gets_its_own():
    model = convert_split_batch_norm(network())
    clean, adversarial, joint = network(), network(), deepcopy(model)
    x, y = images(8, 1), 3 * images(8, 2)

    def both(batch):
        with adversarial_stream(joint, after=8):
            joint(batch)

    recompute_statistics(joint, [torch.cat([x, y])], forward=both)
    with adversarial_stream(model):
        recompute_statistics(model, [y])
    for one, batch in ((clean, x), (adversarial, y)):
        recompute_statistics(one, [batch])
    for index in (1, 4):
        torch.testing.assert_close(joint[index].running_mean, clean[index].running_mean)
        torch.testing.assert_close(joint[index].auxiliary.running_var, adversarial[index].running_var)
        torch.testing.assert_close(model[index].auxiliary.running_mean, adversarial[index].running_mean)
        assert torch.equal(model[index].running_mean, torch.zeros_like(model[index].running_mean))


def test_takes_what_a_loader_gives():
    x, one, other = images(8), network(), network()
    recompute_statistics(one, [(x, torch.zeros(8))])
    recompute_statistics(other, [{"image": x}], forward=lambda batch: other(batch["image"]))
    assert torch.equal(one[4].running_var, other[4].running_var)


def test_a_model_without_batch_norm_is_left_alone_and_no_data_refused():
    recompute_statistics(nn.Linear(2, 2), [torch.zeros(1, 2)])
    with pytest.raises(UserError, match="batches: nothing passed through any batch norm; give at least one batch"):
        recompute_statistics(network(), [])
