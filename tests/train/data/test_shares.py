import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.core.checks import RecipeError
from bigbatch.layers import ghost_groups
from bigbatch.train.data.micro_batch import micro_batches
from bigbatch.train.data.shares import IDLE_SAMPLES, check_shares, share_of, work_of

GHOSTS = st.one_of(st.none(), st.integers(1, 40))


@given(st.integers(1, 500), st.integers(1, 9), GHOSTS)
def test_every_sample_and_every_group_is_one_workers(num_samples, world, ghost):
    shares = [share_of(num_samples, rank, world, ghost) for rank in range(world)]
    place = 0
    for share in shares:
        assert share.start == place
        place += share.num_samples
    assert place == num_samples
    if ghost is None:
        assert max(s.num_samples for s in shares) - min(s.num_samples for s in shares) <= 1
        return
    cut = [size for s in shares if s.num_samples for size in ghost_groups(s.num_samples, ghost)]
    assert cut == ghost_groups(num_samples, ghost)  # normalised as one worker would
    counts = [len(cut) - s.groups_before - s.groups_after for s in shares]
    assert sum(counts) == len(cut)
    assert max(counts) - min(counts) <= 1


@given(st.integers(1, 300), st.integers(1, 6), st.integers(1, 50), GHOSTS, st.booleans())
def test_passes_cover_the_share_and_keep_step(num_samples, world, micro_batch, ghost, equal_num_passes):
    works = [
        work_of(num_samples, rank, world, micro_batch=micro_batch, ghost_batch=ghost, equal_num_passes=equal_num_passes)
        for rank in range(world)
    ]
    for work in works:
        assert sum(work.sizes[work.idle :]) == work.share.num_samples
        assert work.sizes[: work.idle] == [IDLE_SAMPLES] * work.idle
        assert work.sizes, "a worker without samples passes all the same"
        if work.share.num_samples:
            assert work.sizes[work.idle :] == micro_batches(work.share.num_samples, micro_batch, ghost)
    if equal_num_passes:
        assert len({len(work.sizes) for work in works}) == 1
    else:
        assert all(work.idle == (not work.share.num_samples) for work in works)


def test_workers_that_would_never_have_anything_to_do():
    check_shares(4, 4, None)
    with pytest.raises(RecipeError, match="5 workers for a global_batch of 4: some would have no samples; start at most 4"):
        check_shares(4, 5, None)
    check_shares(256, 2, 128)
    with pytest.raises(RecipeError, match="3 workers for 2 normalisation groups"):
        check_shares(256, 3, 128)
    with pytest.raises(RecipeError, match=r"2 workers for 1 normalisation group \(ghost_batch = global"):
        check_shares(256, 2, "global")
