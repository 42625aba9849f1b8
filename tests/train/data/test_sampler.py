import torch
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.train.data.sampler import epoch_permutation, sample_indices


@given(n=st.integers(1, 200), cuts=st.lists(st.integers(1, 150), min_size=1, max_size=20), seed=st.integers(0, 5))
def test_no_sample_is_dropped_or_doubled_however_the_updates_are_cut(n, cuts, seed):
    """Any batches, changing between updates, give the same order; each epoch holds every sample once."""
    start, parts = 0, []
    for cut in cuts:
        parts.append(sample_indices(seed, n, start, cut))
        start += cut
    order = torch.cat(parts)
    assert torch.equal(order, sample_indices(seed, n, 0, start))
    for epoch in range(start // n):
        assert sorted(order[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(epoch_permutation(seed, epoch, 50).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
