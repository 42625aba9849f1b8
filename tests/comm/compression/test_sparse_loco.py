from pathlib import Path

import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.comm.buckets import Bucket
from tests.distributed.ranks import run_ranks
from tests.reference.sparse_loco import four_levels

from bigbatch.comm.compression.sparse_loco import SparseLoCo, decode, encode, num_sent, payload_bytes, two_magnitudes
from bigbatch.core.checks import UserError
from bigbatch.core.methods import COMPRESSIONS

SCRIPT = Path(__file__).with_name("compressor_ranks.py")


def test_hand_worked():
    """Of 5, 4 and 1: 4.5 twice and 1, with squared error 1/2; 5 and 2.5 twice would have 9/2."""
    pair, num_large = two_magnitudes(torch.tensor([[5.0, 4.0, 1.0], [3.0, 0.0, 0.0]], dtype=torch.float64))
    assert pair.tolist() == [[4.5, 1.0], [3.0, 0.0]]
    assert num_large.tolist() == [[2], [1]]
    e = torch.tensor([[0.1, -4.0, 0.2, 2.0], [-1.0, 0.0, 0.0, 0.5]])
    payload = encode(e, 2)
    assert len(payload) == payload_bytes(2, 2) == 6 + 1 + 16
    index, values = decode(payload, 2, 2)
    assert index.tolist() == [[1, 3], [0, 3]]
    assert values.tolist() == [[-4.0, 2.0], [-1.0, 0.5]]


def test_what_is_left_out_decays_and_comes_later():
    """Half of each chunk of 2, in one process: 1 stays, and is half of it when it meets 4 more."""
    compressor = SparseLoCo(chunk=2, top=1, decay=0.5)
    assert compressor.comm_hook(Bucket(torch.tensor([2.0, 1.0, -3.0]))).wait().tolist() == [2.0, 0.0, -3.0]
    assert compressor.state_dict()["errors"][0].tolist() == [0.0, 1.0, 0.0]
    assert compressor.comm_hook(Bucket(torch.tensor([0.0, 4.0, 0.0]))).wait().tolist() == [0.0, 4.5, 0.0]


@pytest.mark.parametrize("world", [3, 4])
def test_the_papers_algorithm_by_real_processes(world, tmp_path):
    """To 1e-12 for 100 updates; equal bits, nothing lost, resume, bytes, failures, training: see the script."""
    run_ranks(SCRIPT, world, tmp_path, "sparse_loco")


@given(st.lists(st.floats(2.0**-10, 100, width=32), min_size=1, max_size=30))
def test_no_split_has_a_smaller_error(values):
    x = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)[None]
    pair, num_large = two_magnitudes(x)
    levels = torch.where(torch.arange(len(values)) < num_large, pair[:, :1], pair[:, 1:])
    best = torch.tensor(four_levels(x[0].tolist()), dtype=torch.float64)
    assert (levels - x).square().sum() <= (best - x).square().sum() * (1 + 1e-5) + 1e-9
    assert (levels - x).square().sum() < x.square().sum()


@given(st.integers(1, 300), st.integers(1, 64), st.data())
def test_only_the_largest_of_each_chunk_are_sent(size, chunk, data):
    top = data.draw(st.integers(1, chunk))
    compressor = SparseLoCo(chunk=chunk, top=top)
    v = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    got = compressor.comm_hook(Bucket(v)).wait()
    torch.testing.assert_close(got + compressor.state_dict()["errors"][0], v, rtol=0, atol=1e-12)
    for piece, sent in zip(v.split(chunk), got.split(chunk), strict=True):
        assert sent.count_nonzero() == num_sent(len(piece), chunk=chunk, top=top)
        assert piece[sent == 0].abs().amax().nan_to_num() <= piece[sent != 0].abs().amin() if (sent == 0).any() else True
        assert (sent * piece >= 0).all()
        assert len(sent[sent != 0].abs().unique()) <= 2


def test_few_values_that_are_not_zero_arrive_as_they_are():
    """The last index of a chunk, and the first of the next one; nothing comes with the zeros that fill up."""
    v = torch.zeros(4097)
    v[4095], v[4096], v[0] = 2.0, -8.0, 2.0
    assert torch.equal(SparseLoCo().comm_hook(Bucket(v)).wait(), v)
    assert torch.equal(SparseLoCo().comm_hook(Bucket(torch.zeros(70))).wait(), torch.zeros(70))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_what_is_not_finite_is_not_hidden(bad):
    """Nor what is too large for a float32 scale."""
    v = torch.ones(100, dtype=torch.float64)
    v[7] = bad
    got = SparseLoCo(chunk=10, top=2).comm_hook(Bucket(v)).wait()
    assert not got[7].isfinite()
    assert got[10:].isfinite().all()


@given(st.integers(1, 5), st.integers(1, 5))
def test_what_is_owed_to_the_weights_survives_another_number_of_workers(before, now):
    states = [{"errors": {0: torch.tensor([float(i + 1)], dtype=torch.float64)}} for i in range(before)]
    loaded = []
    for rank in range(now):
        compressor = SparseLoCo()
        compressor.load_state_dicts(states, rank, now)
        loaded.append(compressor.state_dict()["errors"])
    assert sum(errors[0].item() for errors in loaded if errors) / now == pytest.approx(sum(range(1, before + 1)) / before)


def test_bytes_of_one_mean():
    """64 of 4,096: 96 bytes of indices, 16 of levels, 8 of magnitudes; of 1,000 more, 16 values: 24 + 4 + 8."""
    assert num_sent(1000, chunk=4096, top=64) == 16
    assert SparseLoCo().sent_bytes(4096, 4, 4) == 3 * 120
    assert SparseLoCo().sent_bytes(2 * 4096 + 1000, 4, 2) == 2 * 120 + 36
    assert SparseLoCo().sent_bytes(4096, 4, 1) == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk": 4097}, "chunk = 4097: must lie from 1 to 4096, as an index has 12 bits; give 4096, as in the paper"),
        ({"chunk": 0}, "chunk = 0: must lie from 1 to 4096"),
        ({"top": 0}, "top = 0: must lie from 1 to chunk = 4096"),
        ({"chunk": 8, "top": 9}, "top = 9: must lie from 1 to chunk = 8"),
        ({"decay": 1.1}, "decay = 1.1: must lie from 0 to 1"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(UserError, match=message):
        SparseLoCo(**settings)


def test_from_a_recipe():
    method = COMPRESSIONS["sparse_loco"]
    compressor = method.build(method.section(chunk=128, top=4, decay=0.5), 0, torch.device("cpu"))
    assert (compressor.chunk, compressor.top, compressor.decay) == (128, 4, 0.5)
    with pytest.raises(pydantic.ValidationError, match="top = 9: must be at most chunk = 8; give a small part of it"):
        method.section(chunk=8, top=9)
