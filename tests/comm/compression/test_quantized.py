import math
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tests.comm.buckets import Bucket
from tests.distributed.ranks import run_ranks

from bigbatch.comm.compression.compressor import Compressor, HalfPrecision, PowerSGD
from bigbatch.comm.compression.packing import pack, pack_12_bits, packed_bytes, unpack, unpack_12_bits
from bigbatch.comm.compression.quantized import Quantized, block_scales, decode, encode, payload_bytes, shard_size
from bigbatch.comm.compression.top_k import TopK
from bigbatch.core.checks import UserError
from bigbatch.core.methods import COMPRESSIONS

SCRIPT = Path(__file__).with_name("compressor_ranks.py")
GRIDS = [(8, 127), (4, 7)]


def test_hand_worked():
    """A block of -3.5 and 1.2 in 4 bits: s = 3.5 / 7 = 0.5, so 1.2 is sent as 2 steps."""
    v = torch.tensor([[1.2, -3.5]], dtype=torch.float64)
    assert block_scales(v, 4).tolist() == [0.5]
    payload = encode(v, bits=4, block=2)
    assert payload.shape == (1, payload_bytes(2, bits=4, block=2)) == (1, 5)
    assert decode(payload, 2, bits=4, block=2, dtype=torch.float64).tolist() == [[1.0, -3.5]]
    assert block_scales(torch.tensor([254.0, -1.0]), 8).item() == 2.0


def test_what_is_left_out_comes_later():
    """In one process: 1.2 goes as 1.0, then 0.2 + 1.2 = 1.4 as 1.5, for 3.5 and its steps of 0.5 go as they are."""
    compressor = Quantized("int4", block=2)
    v = torch.tensor([1.2, -3.5], dtype=torch.float64)
    assert compressor.comm_hook(Bucket(v)).wait().tolist() == [1.0, -3.5]
    torch.testing.assert_close(compressor.state_dict()["errors"][0], torch.tensor([0.2, 0.0], dtype=torch.float64))
    assert compressor.comm_hook(Bucket(v)).wait().tolist() == [1.5, -3.5]
    assert v.tolist() == [1.2, -3.5]
    plain = Quantized("int4", block=2, error_feedback=False)
    assert [plain.comm_hook(Bucket(v)).wait().tolist() for _ in range(2)] == [[1.0, -3.5]] * 2
    assert plain.state_dict() == {"errors": {}, "owner_errors": {}}


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("world", [3, 4])
def test_the_papers_algorithm_by_real_processes(kind, world, tmp_path):
    """DoubleSqueeze to 1e-12 for 100 updates; equal bits, nothing lost, resume, bytes, failures, training: see the script."""
    run_ranks(SCRIPT, world, tmp_path, kind)


@given(st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), min_size=1, max_size=60), st.sampled_from(GRIDS), st.integers(1, 9))
@example([0.0], (8, 127), 1)
def test_half_a_step_at_most(values, grid, block):
    bits, largest = grid
    v = torch.nn.functional.pad(torch.tensor(values, dtype=torch.float64), (0, -len(values) % block))[None]
    got = decode(encode(v, bits=bits, block=block), v.shape[1], bits=bits, block=block, dtype=torch.float64)
    step = (v.view(-1, block).abs().amax(1) / largest).repeat_interleave(block)
    tiny = 2.0**-126 * largest  # where a float32 step is not a normal number, it may be rounded far down
    assert (((got - v)[0].abs() <= step / 2 * (1 + 1e-6)) | (v.abs()[0] < tiny)).all()
    assert got[v == 0].eq(0).all()


@given(st.lists(st.integers(0, 2**12 - 1), max_size=50))
def test_packing_round_trips(values):
    for bits in (2, 4, 8):
        codes = torch.tensor(values).remainder(2**bits).to(torch.uint8)
        packed = pack(codes, bits)
        assert len(packed) == packed_bytes(len(values), bits) == math.ceil(len(values) * bits / 8)
        assert torch.equal(unpack(packed, len(values), bits), codes)
        assert torch.equal(unpack(pack(codes.repeat(3, 1), bits), len(values), bits), codes.repeat(3, 1))
    packed = pack_12_bits(torch.tensor(values, dtype=torch.int64))
    assert len(packed) == packed_bytes(len(values), 12) == math.ceil(len(values) * 1.5)
    assert unpack_12_bits(packed, len(values)).tolist() == values


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 40), st.integers(1, 7))
def test_what_is_owed_to_the_weights_survives_another_number_of_workers(before, now, size, block):
    """The mean of the workers' errors, and every value of the owners'."""
    random = torch.Generator().manual_seed(size)
    whole = torch.randn(size, dtype=torch.float64, generator=random)
    shards = torch.nn.functional.pad(whole, (0, before * shard_size(size, before, block) - size)).chunk(before)
    errors = torch.randn(before, size, dtype=torch.float64, generator=random)
    states = [{"errors": {0: e}, "owner_errors": {0: s}} for e, s in zip(errors, shards, strict=True)]
    loaded = []
    for rank in range(now):
        compressor = Quantized("int8", block=block)
        compressor.load_state_dicts(states, rank, now)
        loaded.append(compressor.state_dict())
    owed = sum(state["errors"].get(0, torch.zeros(size)) for state in loaded) / now
    torch.testing.assert_close(owed, errors.mean(0), rtol=0, atol=1e-12)
    owners = torch.cat([state["owner_errors"][0] for state in loaded])
    assert len(owners) == now * shard_size(size, now, block)
    assert torch.equal(owners[:size], whole)
    assert not owners[size:].any()


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("size", [1, 255, 256, 1000])
def test_any_size_and_zeros(kind, size):
    compressor = Quantized(kind)
    zeros = torch.zeros(size, dtype=torch.bfloat16)
    assert torch.equal(compressor.comm_hook(Bucket(zeros)).wait(), zeros)
    ones = torch.ones(size)
    torch.testing.assert_close(compressor.comm_hook(Bucket(ones, 1)).wait(), ones)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e300])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_what_is_not_finite_is_not_hidden(kind, bad):
    """Nor what is too large for a float32 scale."""
    v = torch.ones(600, dtype=torch.float64)
    v[300] = bad
    got = Quantized(kind).comm_hook(Bucket(v)).wait()
    assert not got[256:512].isfinite().any()
    torch.testing.assert_close(got[:256], v[:256])


def test_a_vector_of_another_size_drops_the_error():
    compressor = Quantized("int4", block=4)
    compressor.comm_hook(Bucket(torch.randn(8, generator=torch.Generator().manual_seed(0)))).wait()
    assert compressor.comm_hook(Bucket(torch.tensor([7.0, 3.0]))).wait().tolist() == [7.0, 3.0]


def test_bytes_of_one_mean():
    """Of 1,000 float32: 6,000 for a plain ring of 4. int8: 4 blocks of 256, one for each rank, with 4 bytes of scale."""
    assert Compressor().sent_bytes(1000, 4, 4) == 6000.0
    assert HalfPrecision().sent_bytes(1000, 4, 4) == 3000.0
    assert TopK(0.01).sent_bytes(1000, 4, 4) == 3 * 10 * (4 + 4)
    assert math.isnan(PowerSGD().sent_bytes(1000, 4, 4))
    assert Quantized("int8").sent_bytes(1000, 4, 4) == 2 * 3 * (256 + 4)
    assert Quantized("int4").sent_bytes(1000, 4, 4) == 2 * 3 * (128 + 4)
    for method in (Compressor(), TopK(), Quantized()):
        assert method.sent_bytes(1000, 4, 1) == 0.0
    for world_size in (2, 64, 512):  # hardly grows with the number of ranks
        assert Quantized("int8").sent_bytes(2**24, 4, world_size) <= 2 * 2**24 * (1 + 4 / 256)


def test_bad_arguments():
    with pytest.raises(UserError, match="unknown kind of quantisation 'int16': did you mean 'int8'"):
        Quantized("int16")
    with pytest.raises(UserError, match="block = 0: must be 1 or more; give the number of values that share a scale, say 256"):
        Quantized(block=0)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_from_a_recipe(kind):
    method = COMPRESSIONS[kind]
    compressor = method.build(method.section(kind=kind, block=64, error_feedback=False), 0, torch.device("cpu"))
    assert compressor.sent_bytes(128, 4, 2) == 2 * (64 * int(kind[3:]) // 8 + 4)
    assert not compressor.error_feedback
