import contextlib
import random
import socket
import struct
import time
from functools import partial

import pytest
import torch
import zmq
from tests.comm.parameter_server.served import losses_of, problem, threads, work

from bigbatch.comm.parameter_server.client import ParameterClient
from bigbatch.comm.parameter_server.messages import HEADER, MAGIC, Kind, Request, encode_request
from bigbatch.comm.parameter_server.server import ParameterServer
from bigbatch.comm.parameter_server.work_queue import WorkQueue, even_split
from bigbatch.core.checks import LostWorkers, UserError


def alone(model, inputs, targets, *, total, batch, make):
    """The same run by one worker in an ordinary loop."""
    optimizer = make(model.parameters())
    for start in range(0, total, batch):
        span = slice(start, min(start + batch, total))
        (model(inputs[span]) - targets[span]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach() for p in model.parameters()]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


@pytest.mark.parametrize("make", [sgd, partial(torch.optim.AdamW, lr=0.01)], ids=["sgd", "adamw"])
def test_synchronous_is_one_worker_on_the_joined_batch(make):
    model, *_ = problem()
    server = ParameterServer(model.parameters(), WorkQueue(total_samples=1010, global_batch=30, gradients_per_update=4))
    optimizer, losses = make(model.parameters()), []
    with threads(*(partial(work, server.address, server.token, i) for i in range(3))):  # fewer workers than pieces
        while (update := server.collect()) is not None:
            assert update.staleness == [0] * len(update.work_items)
            losses.append(update.sum_loss / update.num_samples)
            optimizer.step()
            server.publish()
        server.finish()
    expected = alone(*problem(), total=1010, batch=30, make=make)
    for got, want in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(got.detach(), want, rtol=0, atol=1e-10)
    assert len(losses) == 34
    assert server.queue.histogram == {0: 34 * 4}


def test_asynchronous_learns_within_its_bound_and_counts_its_bytes():
    model, inputs, targets = problem()
    server = ParameterServer(
        model.parameters(), WorkQueue(total_samples=4000, global_batch=10, gradients_per_update=2, staleness_bound=3), damping="inverse"
    )
    before = (model(inputs) - targets).square().mean().item()

    def slow(piece):
        time.sleep(0.003)

    with threads(partial(work, server.address, server.token, 0, before_push=slow), partial(work, server.address, server.token, 1)):
        while (update := server.collect()) is not None:
            assert max(update.staleness) <= 3
            assert update.damping == pytest.approx(sum(0.5 / max(tau, 1) for tau in update.staleness))
            for group in (optimizer := torch.optim.SGD(model.parameters(), lr=0.1)).param_groups:
                group["lr"] *= update.damping
            optimizer.step()
            server.publish()
        server.finish()
    assert (model(inputs) - targets).square().mean().item() < before / 2
    assert max(server.queue.histogram) <= 3
    weights = sum(8 * p.numel() for p in model.parameters())
    assert server.traffic["received_bytes"] == 800 * weights
    assert server.traffic["sent_bytes"] >= 800 * weights


def test_a_worker_that_is_gone_is_missed_and_its_work_done_by_another():
    model, *_ = problem()
    server = ParameterServer(model.parameters(), WorkQueue(total_samples=60, global_batch=20, gradients_per_update=2))
    other, *_ = problem()

    def die():
        with ParameterClient(server.address, server.token, other.parameters(), worker=1) as client:
            assert client.pull() is not None

    with threads(die):
        server.serve(0.5)
        server.serve(0.5)
    began = time.monotonic()
    with threads(partial(work, server.address, server.token, 0)):
        while server.collect() is not None:
            server.publish()
        server.finish()
    assert time.monotonic() - began < 10  # not the 120 s after which a silent one is given up
    assert server.queue.applied_ranges == [[0, 60]]


def test_a_worker_that_comes_back_takes_its_own_place_and_one_that_leaves_is_not_waited_for():
    model, *_ = problem()
    server = ParameterServer(model.parameters(), WorkQueue(total_samples=40, global_batch=20, gradients_per_update=2))
    client_of = partial(ParameterClient, server.address, server.token)

    def comes_back():
        with client_of(problem()[0].parameters(), worker=5) as first:
            assert first.pull().start == 0
            with client_of(problem()[0].parameters(), worker=5) as again:
                piece = again.pull()
                assert piece.start == 0
                for p in first.parameters:
                    p.grad = torch.zeros_like(p)
                assert not first.push(piece._replace(id=piece.id - 1))
                again.leave()
        work_alone()

    work_alone = partial(work, server.address, server.token, 0)
    with threads(comes_back):
        while server.collect() is not None:
            server.publish()
        server.finish()


def test_wrong_tokens_models_jobs_and_addresses():
    model, *_ = problem()
    server = ParameterServer(model.parameters(), WorkQueue(total_samples=10, global_batch=5), job="this")
    refused = []

    def try_all():
        wrong = [
            ("wrong", model.parameters(), "this"),
            (server.token, [torch.zeros(3)], "this"),
            (server.token, model.parameters(), "that"),
        ]
        for token, parameters, job in wrong:
            with pytest.raises(UserError) as error:
                ParameterClient(server.address, token, parameters, worker=3, job=job)
            refused.append(str(error.value))

    with threads(try_all):
        while len(refused) < 3:
            server.serve(0.1)
    assert "worker 3: the parameter server at tcp://127.0.0.1:" in refused[0]
    assert "wrong token: use the server's token (BIGBATCH_TOKEN)" in refused[0]
    assert all("another model, recipe or version than the server's" in text for text in refused[1:])
    with pytest.raises(UserError, match=r"cannot listen there \(Address already in use\); use another address"):
        ParameterServer(model.parameters(), WorkQueue(total_samples=10, global_batch=5), address=server.address)
    server.close()
    with pytest.raises(UserError, match="is not a valid address"):
        ParameterClient("nowhere", "x", model.parameters())
    with pytest.raises(LostWorkers, match=r"worker 0: no parameter server at tcp://127.0.0.1:\d+ within 0.2 s; check that it is started"):
        ParameterClient(server.address, "x", model.parameters(), timeout_s=0.2)


def messages(server, chance, number):
    """Well-framed and wrong, in every way there is."""
    secret = {"token": server.token.encode(), "digest": server._socket._digest}
    limit = server._socket._payload_bytes[Kind.PUSH]
    good = encode_request(Request(Kind.PUSH, 0, 1, 1, 0.5, b"x" * limit), **secret)
    for _ in range(number):
        frames = list(good)
        match chance.randrange(9):
            case 0:
                frames = [chance.randbytes(chance.randrange(200)) for _ in range(chance.randrange(1, 7))]
            case 1:
                frames[0] = chance.randbytes(len(frames[0]))
            case 2:
                frames[1] = chance.randbytes(HEADER.size)
            case 3:
                frames[1] = struct.pack("!6s", MAGIC) + chance.randbytes(HEADER.size - 6)
            case 4:
                frames[2] = chance.randbytes(chance.randrange(limit))
            case 5:
                frames = frames[: chance.randrange(1, 3)]
            case 6:
                frames = frames * chance.randrange(2, 20)
            case 7:
                frames[1] = frames[1][: chance.randrange(HEADER.size)]
            case 8:  # a request in good order, for work that nobody was given
                frames = encode_request(Request(Kind.PUSH, 0, 1, chance.getrandbits(64), 0.5, good[2]), **secret)
        yield frames


def test_ten_thousand_bad_messages_change_nothing(tmp_path):
    seed = 20261121
    print(f"seed {seed}")
    chance = random.Random(seed)
    model, *_ = problem()
    server = ParameterServer(model.parameters(), WorkQueue(total_samples=2000, global_batch=20, staleness_bound=2))
    optimizer = sgd(model.parameters())
    with threads(partial(work, server.address, server.token, 0)):
        for _ in range(5):
            server.collect()
            optimizer.step()
            server.publish()

        def state():
            kept = {key: value for key, value in server.queue.state_dict().items() if key not in ("refused", "waiting", "cursor")}
            buffers = [optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()]
            return kept, [p.detach().clone() for p in model.parameters()], buffers

        before = state()
        context = zmq.Context()
        sent = 0
        for _ in range(20):
            peer = context.socket(zmq.DEALER)
            peer.setsockopt(zmq.LINGER, 0)
            peer.connect(server.address)
            for frames in messages(server, chance, 440):
                peer.send_multipart(frames)
                sent += 1
                server.serve(0)
            end = time.monotonic() + 20
            while server.traffic["malformed"] + server.queue.refused["unknown"] < sent and time.monotonic() < end:
                server.serve(0.05)
            peer.close()
        assert server.traffic["malformed"] + server.queue.refused["unknown"] == sent == 8800
        port = int(server.address.rpartition(":")[2])
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)  # how a ZeroMQ peer begins
        for i in range(1000):
            with socket.create_connection(("127.0.0.1", port)) as raw:
                raw.settimeout(1)
                kind = chance.randrange(4)
                data = chance.randbytes(chance.randrange(300))
                if kind == 1:
                    data = greeting[:64] + data
                elif kind == 2:  # a frame that says it has 2^62 bytes
                    data = greeting[:64] + b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER" + b"\x02" + struct.pack("!Q", 1 << 62)
                elif kind == 3:
                    data = b"GET / HTTP/1.1\r\n\r\n"
                raw.sendall(data)
            sent += 1
            if i % 50 == 0:
                server.serve(0)
        for _ in range(200):  # longer than any message of this run: its connection is ended before it is read
            huge = context.socket(zmq.DEALER)
            huge.setsockopt(zmq.LINGER, 0)
            huge.connect(server.address)
            huge.send_multipart([server.token.encode(), bytes(HEADER.size), bytes(1 << 18)])
            server.serve(0.01)
            huge.close()
            sent += 1
        context.term()
        assert sent == 10_000
        assert server.traffic["malformed"] + server.queue.refused["unknown"] >= 8800
        after = state()
        assert after[0] == before[0]
        assert all(torch.equal(a, b) for part in (1, 2) for a, b in zip(after[part], before[part], strict=True))

        while server.collect() is not None:  # and the run goes on to its end
            optimizer.step()
            server.publish()
        server.finish()
    assert server.queue.applied_ranges == [[0, 2000]]
    assert server.queue.version == 100


def test_a_server_that_goes_down_and_comes_back_applies_nothing_twice():
    """Linear loss, so that the weight counts the updates: each takes exactly 1 from it."""
    total, batch, chance = 300, 3, random.Random(7)
    w = torch.zeros(1, dtype=torch.float64)
    queue = WorkQueue(total_samples=total, global_batch=batch, staleness_bound=4, nonce=0)
    server = ParameterServer([w], queue, token="t")
    port = int(server.address.rpartition(":")[2])

    def count(worker):
        weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        lost = contextlib.suppress(LostWorkers)  # one that meets nobody after the last restart is not needed any more
        with lost, ParameterClient(f"tcp://127.0.0.1:{port}", "t", [weight], worker=worker, timeout_s=2) as client:
            while (piece := client.pull()) is not None:
                assert weight.item() == -piece.version  # what was read is one version, and that one
                weight.sum().backward()
                client.push(piece)

    lives = 1
    with threads(*(partial(count, i) for i in range(3))):
        saved = queue.state_dict(), w.clone()
        while not queue.done:
            update = server.collect(timeout_s=1)
            if update is None:
                continue
            w -= w.grad
            server.publish()
            if chance.random() < 0.1:
                saved = queue.state_dict(), w.clone()
            if chance.random() < 0.1 and lives < 10:  # gone, with all that came after the last snapshot
                server.close()
                queue = WorkQueue(total_samples=total, global_batch=batch, staleness_bound=4, nonce=lives)
                queue.load_state_dict(saved[0])
                w = saved[1].clone()
                server = ParameterServer([w], queue, token="t", address=f"tcp://127.0.0.1:{port}")
                lives += 1
        server.finish()
    assert lives == 10
    assert w.item() == -total / batch
    assert queue.version == total / batch
    assert queue.applied_ranges == [[0, total]]
    assert max(queue.histogram) <= 4


def test_a_server_that_ends_every_connection_is_given_up(monkeypatch):
    monkeypatch.setattr("bigbatch.comm.parameter_server.connection.MAX_DISCONNECTS", 3)
    monkeypatch.setattr("bigbatch.comm.parameter_server.connection.RECONNECT_MS", 10)
    model, *_ = problem()
    server = ParameterServer(model.parameters(), WorkQueue(total_samples=10, global_batch=5))
    with pytest.raises(LostWorkers, match="no parameter server at"):  # a token longer than any message that this server takes
        ParameterClient(server.address, "x" * 10_000, model.parameters())
    server.close()


def test_the_smallest_model_goes_with_a_token_longer_than_it():
    w = torch.zeros(1, requires_grad=True)
    server = ParameterServer([w], WorkQueue(total_samples=4, global_batch=2), token="x" * 256)

    def one():
        with ParameterClient(server.address, server.token, [torch.zeros(1)]) as client:
            while (piece := client.pull()) is not None:
                assert client.push(piece)

    with threads(one):
        while server.collect() is not None:
            server.publish()
        server.finish()


def test_even_pieces_of_an_update_are_the_default():
    assert even_split(7, 3) == [2, 2, 3]
    model, inputs, targets = problem()
    assert losses_of(model, inputs, targets, type("W", (), {"start": 1, "num_samples": 3})).shape == (3,)
