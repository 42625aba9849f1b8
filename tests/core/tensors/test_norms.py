import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.core.tensors.norms import global_norm, norms, ratio_or_one, sq_norm


def test_hand_worked():  # 3, 4 and 12: 9 + 16 + 144 = 169
    tensors = [torch.tensor([3.0, 4.0]), torch.tensor([[12.0]])]
    assert sq_norm(tensors) == 169
    assert global_norm(tensors) == 13


def test_nothing_has_norm_zero():
    assert sq_norm([]) == 0


def test_bfloat16_is_accumulated_in_float32():
    ones = torch.ones(100_000, dtype=torch.bfloat16)
    assert sq_norm([ones]).dtype == torch.float32
    assert sq_norm([ones]).item() == pytest.approx(100_000, rel=1e-6)
    assert sq_norm([ones.double()]).dtype == torch.float64


@given(cut=st.integers(0, 10))
def test_does_not_depend_on_how_the_vector_is_cut(cut):
    v = torch.arange(10, dtype=torch.float64)
    assert global_norm([v[:cut], v[cut:]]) == pytest.approx(global_norm([v]).item(), rel=1e-14)


def test_the_zero_norm_rule():
    ratio = ratio_or_one(torch.tensor([6.0, 0.0, 6.0, 0.0]), torch.tensor([3.0, 3.0, 0.0, 0.0]))
    assert ratio.tolist() == [2.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["contiguous", "transposed", "with gaps"])
def test_long_tensors_lose_no_small_squares(kind):
    """torch's `vector_norm` of a tensor of four million elements is off by 4e-5 on a CPU."""
    x = torch.randn(2000, 2100, generator=torch.Generator().manual_seed(0))
    x = {"contiguous": x, "transposed": x.T, "with gaps": x[:, :100]}[kind]
    exact = x.double().square().sum()
    assert sq_norm([x]).item() == pytest.approx(exact.item(), rel=4e-6)
    assert norms([x, x[:1]], [x[:1], x])[[0, 1], [0, 1]].square().double().tolist() == pytest.approx([exact.item()] * 2, rel=4e-6)
