from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.comm.parameter_server.served import problem, threads, work

from bigbatch.comm.parameter_server.server import ParameterServer
from bigbatch.comm.parameter_server.shard_client import ShardClient
from bigbatch.comm.parameter_server.shard_server import ShardServer
from bigbatch.comm.parameter_server.sharding import shard_parameters
from bigbatch.comm.parameter_server.supervisor import reserved_ports
from bigbatch.comm.parameter_server.work_queue import WorkQueue
from bigbatch.core.checks import UserError


def test_hand_worked():
    assert shard_parameters([5, 1, 4, 3], 2) == [[0, 1], [2, 3]]
    assert shard_parameters([5, 1, 4, 3], 1) == [[0, 1, 2, 3]]
    with pytest.raises(UserError, match="5 servers for 4 tensors: each server needs at least one"):
        shard_parameters([5, 1, 4, 3], 5)


@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=30), servers=st.integers(1, 8))
def test_each_tensor_is_somewhere_once_and_the_load_is_even(sizes, servers):
    servers = min(servers, len(sizes))
    shares = shard_parameters(sizes, servers)
    assert sorted(i for share in shares for i in share) == list(range(len(sizes)))
    loads = [sum(sizes[i] for i in share) for share in shares]
    assert min(loads) > 0
    assert max(loads) <= sum(sizes) / servers + max(sizes)


def run_shard_server(number, addresses, make):
    model, *_ = problem()
    server = ShardServer(list(model.parameters()), number, addresses, token="t")
    optimizer = make(model.parameters())
    while (order := server.next()) is not None:
        if order.kind == "apply":
            optimizer.step()
            server.publish()
        elif order.kind == "state":
            server.send_state({"weights": [p.detach() for p in server.parameters]})
        else:
            assert order.state == "begin"
    server.close()


@pytest.mark.parametrize("bound", [0, 3])
def test_three_servers_are_one(bound):
    make = partial(torch.optim.Adam, lr=0.01)
    model, *_ = problem()
    gradients = 1 if bound else 2
    with reserved_ports(3) as ports:
        addresses = [f"tcp://127.0.0.1:{port}" for port in ports]
        shards = ShardClient(list(model.parameters()), addresses, token="t", extras=[], job="", timeout_s=20)
        queue = WorkQueue(total_samples=900, global_batch=30, gradients_per_update=gradients, staleness_bound=bound, nonce=3)
        server = ParameterServer(model.parameters(), queue, token="t", address=addresses[0], shards=shards)
        optimizer = make(shards.own_parameters)
        others = [partial(run_shard_server, i, addresses, make) for i in (1, 2)]
        seen = {}

        def look(piece, weights):
            """What a worker read of a version is what every other read of it."""
            flat = torch.cat([p.detach().flatten() for p in weights])
            assert torch.equal(seen.setdefault(piece.version, flat), flat)

        def watched(worker):
            from tests.comm.parameter_server.served import losses_of

            from bigbatch.comm.parameter_server.client import ParameterClient

            mine, inputs, targets = problem()
            with ParameterClient(addresses, "t", mine.parameters(), worker=worker) as client:
                while (piece := client.pull()) is not None:
                    look(piece, mine.parameters())
                    losses_of(mine, inputs, targets, piece).mean().backward()
                    client.push(piece)

        with threads(*others, *(partial(watched, i) for i in range(3))):
            shards.load(["begin", "begin"], queue)
            while server.collect() is not None:
                optimizer.step()
                server.publish()
            states = shards.states()
            server.finish()
            shards.end()
    assert queue.applied_ranges == [[0, 900]]
    if bound:
        return
    for share, state in zip(shards.shard_indices[1:], states, strict=True):
        for i, weights in zip(share, state["weights"], strict=True):
            shards.parameters[i].data.copy_(weights)
    alone, inputs, targets = problem()
    optimizer = make(alone.parameters())
    for start in range(0, 900, 30):
        (alone(inputs[start : start + 30]) - targets[start : start + 30]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for got, want in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_work_of_an_earlier_life_is_refused_by_a_part_too():
    with reserved_ports(2) as ports:
        addresses = [f"tcp://127.0.0.1:{port}" for port in ports]
        model, *_ = problem()
        shards = ShardClient(list(model.parameters()), addresses, token="t", extras=[], job="", timeout_s=20)
        queue = WorkQueue(total_samples=60, global_batch=30, nonce=9)
        with threads(partial(run_shard_server, 1, addresses, partial(torch.optim.SGD, lr=0.1))):
            shards.load(["begin"], queue)
            server = ParameterServer(model.parameters(), queue, token="t", address=addresses[0], shards=shards)

            def push_twice(piece):
                from bigbatch.comm.parameter_server.client import ParameterClient

                with ParameterClient(addresses, "t", problem()[0].parameters(), worker=9) as client:
                    assert not client.push(piece._replace(id=piece.id + (1 << 32)))

            with threads(partial(work, addresses, "t", 0, before_push=push_twice)):
                while server.collect() is not None:
                    server.publish()
                server.finish()
            shards.end()
    assert queue.refused == {}  # the part refused them before the first server heard of them
