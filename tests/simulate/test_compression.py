import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.core.checks import UserError
from bigbatch.simulate.compression import powersgd_bytes, top_k_s
from bigbatch.simulate.link import Link


def test_powersgd_hand_worked():
    """Rank 2: 2 (10 + 20) of a matrix, 2 (8 + 27) of a kernel of 8 x 3 x 3 x 3; 5 of a vector, and 3 x 2, which rank 2 would not shrink."""
    assert powersgd_bytes([(10, 20), (8, 3, 3, 3), (5,), (3, 2), ()], rank=2) == 4 * (60 + 70 + 5 + 6 + 1)


@given(st.lists(st.lists(st.integers(1, 50), max_size=4).map(tuple), max_size=6), st.integers(1, 8))
def test_powersgd_never_sends_more_than_there_is(shapes, rank):
    whole = powersgd_bytes([(1, *shape) for shape in shapes], rank)
    assert powersgd_bytes(shapes, rank) <= whole
    assert powersgd_bytes(shapes, rank) <= powersgd_bytes(shapes, rank + 1)


def test_top_k_hand_worked():
    """1 % of 100 elements of 4 bytes: one index and one value, 8 bytes, three times on."""
    assert top_k_s(Link(0.5, 0.25, 0.125), 400, hosts=4, share=0.01) == 3 * (0.5 + 8 * 0.375)
    assert top_k_s(Link(0.5, 0.25, 0.125), 400, hosts=4, share=0.01, ring=False) == 2 * 0.5 + 3 * 8 * 0.375
    assert top_k_s(Link(0.5, 0.25), 400, hosts=1, share=0.01) == 0.0


def test_refuses():
    with pytest.raises(UserError, match="rank = 0: must be a finite number above zero"):
        powersgd_bytes([], rank=0)
    with pytest.raises(UserError, match="share = 2: must lie from 0 to 1"):
        top_k_s(Link(0.5, 0.25), 400, hosts=4, share=2)
