from fractions import Fraction

import pytest
import torch

from bigbatch.core.tensors.ordered_sum import add_in_order


@pytest.mark.parametrize("terms", [1, 2, 5, 9, 40])
def test_the_first_to_the_last_whatever_stands_beside(terms):
    """Against exact fractions, rounded after every addition; in pieces of any width. `values.sum(0)` fails from five terms on."""
    values = torch.rand(terms, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(terms))
    whole = add_in_order(values)
    for width in (1, 3, 7, 16):
        assert torch.equal(torch.cat([add_in_order(piece) for piece in values.split(width, dim=1)]), whole)
    by_hand = [0.0] * 60
    for row in values.tolist():
        by_hand = [float(Fraction(a) + Fraction(b)) for a, b in zip(by_hand, row, strict=True)]
    assert whole.tolist() == by_hand


def test_terms_are_left_as_they_were():
    first = torch.ones(2)
    add_in_order([first, first])
    assert first.tolist() == [1, 1]
