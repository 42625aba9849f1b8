import copy
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference.quantized_batch_norm import levels
from torch import nn

from bigbatch.core.checks import UserError
from bigbatch.layers import GhostBatchNorm, QuantizedBatchNorm
from bigbatch.layers.quantized_batch_norm import Line, Mismatch, exact_levels, first_mismatch, fold_batch_norm


def batch_norm(channels, seed=0, kind=nn.BatchNorm1d, spread=40.0):
    """Evaluated, with random gamma of either sign, beta, mean and var."""
    generator = torch.Generator().manual_seed(seed)
    norm = kind(channels).double().eval()
    norm.weight.data = torch.randn(channels, generator=generator, dtype=torch.float64)
    norm.bias.data = torch.randn(channels, generator=generator, dtype=torch.float64)
    norm.running_mean = spread * torch.randn(channels, generator=generator, dtype=torch.float64)
    norm.running_var = (spread * torch.rand(channels, generator=generator, dtype=torch.float64)) ** 2
    return norm


def exactly(norm, bits=8, **how):
    return partial(exact_levels, line=fold_batch_norm(norm, **how), bits=bits)


def test_hand_worked():  # (3 (2 X + 1 - 5)) / 4 + 1 = 1.5 X - 2, in steps of 2: 0.75 X - 1 and a half: levels 0 0 1 1 2 of X = 0..4
    norm = nn.BatchNorm1d(1, eps=0.0).double().eval()
    norm.weight.data.fill_(3.0)
    norm.bias.data.fill_(1.0)
    norm.running_mean.fill_(5.0)
    norm.running_var.fill_(16.0)
    line = fold_batch_norm(norm, step=2.0, scale=2.0, bias=1.0)
    assert (line.a.item(), line.b.item()) == (0.75, -1.0)
    layer = QuantizedBatchNorm.from_batch_norm(norm, lo=0, hi=4, step=2.0, scale=2.0, bias=1.0)
    assert layer(torch.arange(5)[:, None]).flatten().tolist() == [0, 0, 1, 1, 2]
    assert exact_levels(torch.arange(5)[:, None], line, bits=8).flatten().tolist() == [0, 0, 1, 1, 2]
    assert (layer.A.item(), layer.B.item(), layer.K.item()) == (1, 0, 1)  # X >> 1


@given(a=st.floats(-1e300, 1e300), b=st.floats(-1e300, 1e300), eighths=st.booleans(), bits=st.integers(1, 16))
def test_exact_levels_are_those_of_rational_numbers(a, b, eighths, bits):
    if eighths:  # many half-way values
        a, b = round(a % 40) / 8, round(b % 400) / 8
    line = Line(torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64))
    assert exact_levels(torch.arange(-20, 21)[:, None], line, bits=bits).flatten().tolist() == levels(a, b, -20, 20, bits)


@pytest.mark.parametrize(("width", "bits"), [(6, 8), (8, 8), (10, 4), (12, 8)])
def test_exact_for_every_input(width, bits):
    """The full version, of a thousand channels a width, is benchmarks/quantized_batch_norm.py."""
    norm = batch_norm(60, seed=width, spread=2.0**width / 6)
    layer = QuantizedBatchNorm.from_batch_norm(norm, lo=-(2 ** (width - 1)), hi=2 ** (width - 1) - 1, step=0.02, bits=bits)
    assert first_mismatch(layer, exactly(norm, bits, step=0.02)) is None
    assert layer(layer.hi[None]).unique().numel() > 1


def test_each_channel_has_its_own_range_scale_and_bias():
    norm = batch_norm(5)
    lo, hi = torch.tensor([-9, 0, 5, -70, 3]), torch.tensor([9, 300, 5, -20, 9])
    how = {"step": 0.1, "scale": torch.tensor([1.0, 0.3, 2.0, 0.7, 9.0]), "bias": torch.tensor([0.0, -3.0, 1.5, 40.0, 2.0])}
    layer = QuantizedBatchNorm.from_batch_norm(norm, lo=lo, hi=hi, **how)
    assert first_mismatch(layer, exactly(norm, **how)) is None


def test_gamma_of_zero_and_var_of_zero():
    norm = batch_norm(4)
    norm.weight.data[:2] = 0.0
    norm.running_var[1:3] = 0.0  # a slope of up to 316 gamma
    layer = QuantizedBatchNorm.from_batch_norm(norm, lo=-500, hi=500, step=0.01)
    assert first_mismatch(layer, exactly(norm, step=0.01)) is None
    assert layer.A[:2].tolist() == [0, 0]


def test_both_accumulators_give_the_same_and_nothing_overflows():
    norm = batch_norm(8)
    wide, narrow = (
        QuantizedBatchNorm.from_batch_norm(norm, lo=-128, hi=127, step=0.05, accumulator=kind) for kind in (torch.int64, torch.int32)
    )
    X = torch.arange(-128, 128)[:, None].expand(-1, 8)
    assert narrow(X).dtype == torch.int32
    assert torch.equal(narrow(X).long(), wide(X))
    assert max((wide.A * X).abs().max(), (wide.A * X + wide.B).abs().max()) <= 2**31 - 1


def test_shapes_types_and_memory_formats():
    layer = QuantizedBatchNorm.from_batch_norm(batch_norm(3), lo=0, hi=255, step=0.05)
    flat = torch.randint(0, 256, (2 * 5 * 4, 3), generator=torch.Generator().manual_seed(0))
    image = flat.view(2, 5, 4, 3).permute(0, 3, 1, 2)  # channels_last
    assert torch.equal(layer(image).permute(0, 2, 3, 1).reshape(-1, 3), layer(flat))
    assert torch.equal(layer(image.contiguous()), layer(image))
    for kind in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(layer(flat.to(kind)), layer(flat))


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, GhostBatchNorm])
def test_any_batch_norm_of_any_precision(kind):
    norm = batch_norm(3, kind=kind if kind is not GhostBatchNorm else partial(GhostBatchNorm, ghost_batch=8)).float()
    layer = QuantizedBatchNorm.from_batch_norm(norm, lo=-200, hi=200, step=0.05)
    assert first_mismatch(layer, exactly(norm, step=0.05)) is None


def test_a_batch_norm_without_affine():
    norm = nn.BatchNorm1d(2, affine=False).eval()
    layer = QuantizedBatchNorm.from_batch_norm(norm, lo=-9, hi=9, step=0.5)
    assert layer(torch.tensor([[1, -1], [2, 3]])).tolist() == [[2, 0], [4, 6]]


@pytest.mark.parametrize("accumulator", [torch.int32, torch.int64])
def test_its_state_is_integers_and_all_there_is(accumulator, tmp_path):
    layer = QuantizedBatchNorm.from_batch_norm(batch_norm(4), lo=-100, hi=100, step=0.1, bits=4, accumulator=accumulator)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    again = QuantizedBatchNorm(4, bits=4, accumulator=accumulator)
    again.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    X = torch.randint(-100, 101, (64, 4), generator=torch.Generator().manual_seed(0))
    for other in (again, copy.deepcopy(layer), copy.deepcopy(layer).double(), copy.deepcopy(layer).train()):
        assert torch.equal(other(X), layer(X))
        assert all(values.dtype == accumulator for values in other.state_dict().values())
    assert "4, bits=4" in repr(layer)


def test_the_verifier_finds_one_wrong_level():
    norm = batch_norm(3)
    layer = QuantizedBatchNorm.from_batch_norm(norm, lo=-50, hi=50, step=0.05)
    right = exactly(norm, step=0.05)
    assert first_mismatch(layer, lambda X: right(X) + ((X == 37) & (torch.arange(3) == 1)), block=64) == Mismatch(
        1, 37, int(layer(torch.tensor([[37] * 3]))[0, 1]), int(layer(torch.tensor([[37] * 3]))[0, 1]) + 1
    )
    layer.B[2] += 1 << int(layer.K)
    assert first_mismatch(layer, right).channel == 2


def nan_statistics(norm):
    norm.running_mean[1] = float("nan")


def no_variance(norm):
    norm.running_var[2], norm.eps = 0.0, 0.0


@pytest.mark.parametrize(
    ("spoil", "settings", "message"),
    [
        (nn.Module.train, {}, r"batch norm in training mode: .*; call model.eval\(\) first"),
        (nan_statistics, {}, r"channel 1: gamma = .*, mean = nan, .* fold to .*: must be finite; look for a diverged run, or raise eps"),
        (no_variance, {}, "channel 2: gamma = .*, var = 0 and eps = 0 fold to .*inf X .*: must be finite"),
        (None, {"bits": 0}, "bits = 0: must lie from 1 to 16; 8 is usual"),
        (None, {"bits": 17}, "bits = 17: must lie from 1 to 16"),
        (None, {"step": 0.0}, "step = 0.0: must be a finite number above zero; give the real value of one output level"),
        (None, {"lo": 5, "hi": 4}, "channel 0: inputs from 5 to 4: lo must not exceed hi; swap them"),
        (None, {"accumulator": torch.int16}, "accumulator = torch.int16: must be torch.int32 or torch.int64"),
        (
            None,
            {"hi": 2**20, "step": 0.5, "accumulator": torch.int32, "bits": 16},
            r"channel \d: A = \S+, B = \S+, K = \d+ reach \S+ for X from 0 to 1048576: torch.int32 holds 2,147,483,647; take torch.int64",
        ),
        (None, {"hi": 2**45, "scale": torch.tensor([1e-6, 1, 1])}, r"channel \d: .* torch.int64 holds [\d,]+; take fewer bits, or narrow"),
        (None, {"hi": 2**62, "scale": 1e-15}, "channel 0: no K up to 52 serves its 8 bits of output; narrow the input range or lower bits"),
    ],
)
def test_bad_settings(spoil, settings, message):
    norm = batch_norm(3)
    if spoil:
        spoil(norm)
    with pytest.raises(UserError, match=message):
        QuantizedBatchNorm.from_batch_norm(norm, **{"lo": 0, "hi": 255, "step": 0.05} | settings)


def test_without_running_statistics():
    with pytest.raises(UserError, match="batch norm without running statistics: there is nothing to fold"):
        QuantizedBatchNorm.from_batch_norm(nn.BatchNorm1d(3, track_running_stats=False).eval(), lo=0, hi=9, step=1.0)


def test_bad_inputs():
    layer = QuantizedBatchNorm.from_batch_norm(batch_norm(2), lo=0, hi=9, step=0.05, accumulator=torch.int32)
    with pytest.raises(UserError, match="input of torch.float32: must be of integers; round it first"):
        layer(torch.ones(4, 2))
    with pytest.raises(UserError, match="input 10: outside the range that the layer was built for"):
        layer(torch.tensor([[3, 10]]))
    with pytest.raises(UserError, match="input 4294967299: outside"):  # 3 in int32
        layer(torch.tensor([[3, 2**32 + 3]]))
