import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.comm.compression.compressor import redistribute_errors
from bigbatch.comm.compression.top_k import TopK, num_sent, top_k_indices
from bigbatch.core.checks import UserError


def test_hand_worked():
    assert top_k_indices(torch.tensor([0.1, -3.0, 2.0, 0.5]), 0.5).tolist() == [1, 2]
    assert top_k_indices(torch.tensor([0.0, 0.0]), 0.01).numel() == 1  # never nothing
    assert num_sent(1000, 0.01) == 10


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=40, unique_by=abs), st.floats(0.01, 1))
def test_nothing_that_is_kept_is_larger_than_what_is_sent(values, share):
    vector = torch.tensor(values)
    sent = top_k_indices(vector, share)
    kept = torch.ones(len(values), dtype=torch.bool)
    kept[sent] = False
    assert len(sent) == max(1, round(share * len(values)))
    if kept.any():
        assert vector[kept].abs().max() <= vector[sent].abs().min()


@given(st.integers(1, 5), st.integers(1, 5))
def test_what_is_owed_to_the_weights_survives_another_number_of_workers(before, now):
    memories = [{0: torch.tensor([float(i + 1)], dtype=torch.float64)} for i in range(before)]
    owed = sum(i + 1 for i in range(before)) / before
    parts = [redistribute_errors(memories, rank, now) for rank in range(now)]
    assert sum(part[0].item() for part in parts if part) / now == pytest.approx(owed)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_share_out_of_range(share):
    with pytest.raises(UserError, match=f"share = {share}"):
        TopK(share)
