import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.stand_in import GPU, Moves, OnGPU, waits

from bigbatch.comm.parameter_server.messages import (
    HEADER,
    BadMessage,
    Kind,
    Layout,
    Reply,
    Request,
    Status,
    decode_reply,
    decode_request,
    digest_of,
    encode_reply,
    encode_request,
    pack_tree,
    unpack_tree,
)

TOKEN, DIGEST = b"secret", digest_of([Layout([torch.zeros(3)])], "job")
SIZES = {Kind.HELLO: 0, Kind.PUSH: 12}


def decode(frames):
    return decode_request(frames, token=TOKEN, digest=DIGEST, payload_bytes=SIZES)


def push(**changes):
    request = Request(Kind.PUSH, worker=2, request=7, work=1 << 40, sum_loss=0.5, payload=b"x" * 12)._replace(**changes)
    return encode_request(request, token=TOKEN, digest=DIGEST)


def test_what_is_said_is_what_is_heard():
    assert decode(push()) == Request(Kind.PUSH, 2, 7, 1 << 40, 0.5, b"x" * 12)
    reply = Reply(Status.WORK, 7, {"id": 1 << 63}, b"weights")
    assert decode_reply(encode_reply(reply)) == reply


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "0 frames: must be 3"),
        (push()[:2], "2 frames"),
        ([*push(), b""], "4 frames"),
        ([b"wrong", *push()[1:]], "wrong token"),
        ([TOKEN + b"!", *push()[1:]], "wrong token"),
        ([b"", *push()[1:]], "wrong token"),
        ([TOKEN, b"short", b""], f"a header of 5 bytes: must be {HEADER.size}"),
        ([TOKEN, b"x" * HEADER.size, b""], "another protocol"),
        (push(payload=b"x" * 11), "PUSH with 11 bytes: must be 12"),
        (push(payload=b"x" * 13), "PUSH with 13 bytes: must be 12"),
        (push(kind=Kind.PULL, payload=b""), "kind 2: is not supported by this server"),
        (push(kind=99), "kind 99"),
        (encode_request(Request(Kind.HELLO, 0, 1), token=TOKEN, digest=b"?" * 32), "another model, recipe or version"),
    ],
)
def test_what_is_not_right_to_the_byte_is_refused(frames, message):
    with pytest.raises(BadMessage, match=message):
        decode(frames)


@given(st.lists(st.one_of(st.binary(max_size=120), st.just(TOKEN)), max_size=5))
def test_any_bytes_are_a_request_or_a_bad_message(frames):
    with pytest.raises(BadMessage):
        decode(frames)


@given(place=st.integers(0, HEADER.size - 1), bit=st.integers(0, 7))
def test_a_header_with_a_bit_turned_is_another_request_or_none(place, bit):
    token, header, payload = push()
    turned = bytearray(header)
    turned[place] ^= 1 << bit
    try:
        got = decode([token, bytes(turned), payload])
    except BadMessage:
        return
    assert str(got) != str(decode([token, header, payload]))  # worker, number, work and loss are free


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_any_bytes_are_an_answer_or_a_bad_message(frames):
    with pytest.raises(BadMessage):
        decode_reply(frames)


def test_answers_that_are_none():
    head, _, payload = encode_reply(Reply(Status.END, 1, {}))
    for facts in (b"[" * 60_000, b"[]", b"1", b"{", b"\xff"):
        with pytest.raises(BadMessage):
            decode_reply([head, facts, payload])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_of_any_kind_come_back(dtype):
    tensors = [torch.arange(6).reshape(2, 3).to(dtype).T, torch.zeros((), dtype=torch.uint8), torch.ones(3, dtype=dtype), torch.zeros(0)]
    layout = Layout(tensors)
    for got, sent in zip(layout.unpack(layout.pack(tensors)), tensors, strict=True):
        assert torch.equal(got, sent)
        assert got.dtype == sent.dtype


def test_tensors_of_a_wrong_length_are_refused():
    with pytest.raises(BadMessage, match="7 bytes of tensors: must be 8"):
        Layout([torch.zeros(2)]).unpack(b"x" * 7)


def test_another_model_or_job_has_another_digest():
    same = [Layout([torch.zeros(2)])]
    assert digest_of(same, "a") == digest_of([Layout([torch.ones(2)])], "a")
    others = [digest_of(same, "b"), digest_of([Layout([torch.zeros(3)])], "a"), digest_of([Layout([torch.zeros(2).double()])], "a")]
    assert len({digest_of(same, "a"), *others}) == 4


def test_the_state_of_an_optimizer_comes_back():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    got = unpack_tree(*pack_tree(state))
    assert got["param_groups"] == state["param_groups"]
    assert all(torch.equal(got["state"][i][key], value) for i, values in state["state"].items() for key, value in values.items())


def test_a_state_that_is_none():
    for skeleton in (b"{", b'{"t": 1}', b'{"t": [[2], "load"]}', b'{"d": 3}', json.dumps({"a": 1, "b": 2}).encode()):
        with pytest.raises(BadMessage):
            unpack_tree(skeleton, b"")
    with pytest.raises(TypeError, match="set in a state"):
        pack_tree({"a": {1, 2}})


@given(st.integers(0, 3))
def test_tensors_of_a_gpu_go_in_one_copy_each_way(seed):
    """With a stand-in for the GPU: the same bytes, and one wait."""
    chance = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(3, 2, generator=chance), torch.tensor(7), torch.zeros(0), torch.randn(5, generator=chance).double()]
    layout, there = Layout(tensors), [OnGPU(t) for t in tensors]
    waits.clear()
    packed = layout.pack(there)
    assert packed == layout.pack(tensors)
    assert len(waits) == 1
    with Moves():
        received = layout.unpack(packed, GPU)
    assert all(isinstance(t, OnGPU) for t in received)
    assert all(torch.equal(t.inner, sent) and t.dtype == sent.dtype for t, sent in zip(received, tensors, strict=True))
