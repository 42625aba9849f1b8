import contextlib
import heapq
import itertools
import threading
from functools import partial

import numpy as np
import pytest
import torch
from tests.comm.parameter_server.served import problem, threads
from tests.reference.diloco import diloco

from bigbatch.comm.parameter_server.client import ParameterClient
from bigbatch.comm.parameter_server.decoupled_diloco import LocalUpdates, displacement
from bigbatch.comm.parameter_server.server import ParameterServer
from bigbatch.comm.parameter_server.work_queue import Refused, WorkQueue

LR, MOMENTUM, OUTER = 0.05, 0.9, {"lr": 0.7, "momentum": 0.8}
CUT = LocalUpdates(local_batch=5, period=4, quorum=2)


def test_hand_worked():
    assert displacement([torch.tensor([10.0, 2.0])], [torch.tensor([7.0, 4.0])])[0].tolist() == [3.0, -2.0]
    assert CUT.update_samples == 2 * 4 * 5
    assert CUT.batches(20) == [5, 5, 5, 5]
    assert CUT.batches(12) == [5, 5, 2]
    for start in (80, 100):  # the two items of the third update: both at 80 + j x 2 x 5
        assert [CUT.clock(start, j).samples for j in range(4)] == [80, 90, 100, 110]
        assert [CUT.clock(start, j).updates for j in range(4)] == [8, 9, 10, 11]


def gradient(model, inputs, targets, start, num_samples):
    """Of the mean loss over a range of samples, into `p.grad`."""
    span = slice(start, start + num_samples)
    (model(inputs[span]) - targets[span]).square().mean().backward()


def worker(server, number, *, momentum=MOMENTUM, pulled_by_all=None, on_item=lambda work: None):
    """Takes local steps; returns how many items were wanted."""
    model, inputs, targets = problem()
    optimizer, wanted = torch.optim.SGD(model.parameters(), lr=LR, momentum=momentum), 0
    with ParameterClient(server.address, server.token, model.parameters(), worker=number) as client:
        while (work := client.pull()) is not None:
            if pulled_by_all is not None:
                pulled_by_all.wait(30)
            pulled, start = [p.detach().clone() for p in model.parameters()], work.start
            for num_samples in CUT.batches(work.num_samples):
                gradient(model, inputs, targets, start, num_samples)
                optimizer.step()
                optimizer.zero_grad()
                start += num_samples
            on_item(work)
            wanted += client.push(work, 0.0, displacement(pulled, list(model.parameters())))
    return wanted


@pytest.mark.parametrize("nesterov", [True, False])
def test_equals_the_reference(nesterov):
    """Two workers with momentum inside; each takes one item of every update, as in Algorithm 1 of DiLoCo."""
    model, inputs, targets = problem()
    server = ParameterServer(
        model.parameters(), WorkQueue(total_samples=8 * CUT.update_samples, global_batch=CUT.update_samples, gradients_per_update=2)
    )
    optimizer, starts, reached = torch.optim.SGD(model.parameters(), **OUTER, nesterov=nesterov), [], []
    first, both = flat(model), threading.Barrier(2)
    with threads(*(partial(worker, server, number, pulled_by_all=both) for number in range(2))):
        while (update := server.collect()) is not None:
            starts.append([work.start for work in sorted(update.work_items, key=lambda work: work.worker)])
            optimizer.step()
            server.publish()
            reached.append(flat(model))
        server.finish()

    steps = itertools.count()

    def gradients(X):
        update, step = divmod(next(steps), CUT.period)
        return np.stack([gradient_at(X[:, i], starts[update][i] + step * CUT.local_batch) for i in range(2)], axis=1)

    def gradient_at(weights, start):
        model, *_ = problem()
        torch.nn.utils.vector_to_parameters(torch.from_numpy(weights.copy()), model.parameters())
        gradient(model, inputs, targets, start, CUT.local_batch)
        return np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])

    outer = {"outer_lr": OUTER["lr"], "outer_momentum": OUTER["momentum"], "nesterov": nesterov}
    expected = list(diloco(np.stack([first, first], axis=1), gradients, LR, MOMENTUM, 8 * CUT.period, period=CUT.period, **outer))
    for got, want in zip(reached, expected[CUT.period - 1 :: CUT.period], strict=True):
        np.testing.assert_allclose(got, want[:, 0], rtol=0, atol=1e-12)


def flat(model):
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy().copy()


def test_one_worker_with_outer_rate_1_is_plain_training():
    model, *_ = problem()
    cut = CUT._replace(quorum=1)
    server = ParameterServer(model.parameters(), WorkQueue(total_samples=10 * cut.update_samples + 12, global_batch=cut.update_samples))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with threads(partial(worker, server, 0)):
        while server.collect() is not None:
            optimizer.step()
            server.publish()
        server.finish()
    plain, inputs, targets = problem()
    optimizer = torch.optim.SGD(plain.parameters(), lr=LR, momentum=MOMENTUM)
    for start in range(0, server.queue.total_samples, cut.local_batch):
        gradient(plain, inputs, targets, start, min(cut.local_batch, server.queue.total_samples - start))
        optimizer.step()
        optimizer.zero_grad()
    np.testing.assert_allclose(flat(model), flat(plain), rtol=0, atol=1e-12)


QUORUM = {"gradients_per_update": 3, "backup_workers": 1}


def simulated(seconds, until, *, dies=None, **settings):
    """Updates made, and displacements taken of each worker, by so many seconds on a clock that is not a real one.

    Args:
        seconds: Of each worker for one item.
        until: When to stop.
        dies: A worker that is lost at second 10.5, in the middle of an item, and never missed.
    """
    queue = WorkQueue(total_samples=10**6, global_batch=settings.get("gradients_per_update", 1) * 20, timeout_s=10**6, **settings)
    events, waiting, taken = [], list(range(len(seconds))), [0] * len(seconds)
    now = 0.0
    while True:
        for number in list(waiting):
            work = queue.assign(number, now)
            if work is not None:
                waiting.remove(number)
                heapq.heappush(events, (now + seconds[number], number, work.id))
        if not events or events[0][0] > until:
            return queue, taken
        now, number, id = heapq.heappop(events)
        if number == dies and now > 10.5:
            continue
        with contextlib.suppress(Refused):
            queue.accept(id)
        waiting.append(number)
        while ready := queue.ready():
            for work, _ in ready:
                taken[work.worker] += 1
            queue.mark_applied()


@pytest.mark.parametrize(
    ("settings", "updates", "taken"),
    [
        ({"gradients_per_update": 4}, 10, [10, 10, 10, 10]),  # all wait for the slow one
        (QUORUM, 40, [40, 40, 40, 0]),  # whose displacements are always late
        ({**QUORUM, "staleness_bound": 2}, 40, [40, 40, 40, 0]),
        ({**QUORUM, "staleness_bound": 4}, 43, [40, 40, 40, 9]),  # late by 3 or 4: they fit in
        ({"gradients_per_update": 3, "staleness_bound": 1}, 30, [30, 30, 20, 10]),  # nothing is dropped: the others wait at the bound
        ({"gradients_per_update": 3, "staleness_bound": 4}, 43, [40, 40, 40, 9]),
    ],
    ids=["synchronous", "backup", "quorum, 2", "quorum, 4", "asynchronous, 1", "asynchronous, 4"],
)
def test_a_worker_four_times_slower_does_not_hold_up_the_others(settings, updates, taken):
    queue, found = simulated((1, 1, 1, 4), until=40, **settings)
    assert (queue.version, found) == (updates, taken)


def test_a_lost_worker_that_nobody_misses_is_waited_for_without_backup_workers_only():
    """Until it is found out; a worker whose process ends is found out at once."""
    asynchronous = simulated((1, 1, 1, 1), until=100, dies=3, gradients_per_update=3, staleness_bound=2)[0]
    assert asynchronous.version < 20
    quorum = simulated((1, 1, 1, 1), until=100, dies=3, staleness_bound=2, **QUORUM)[0]
    assert quorum.version >= 100


def test_a_worker_that_hangs_is_passed_by_and_what_it_brings_too_late_is_refused():
    model, *_ = problem()
    server = ParameterServer(model.parameters(), WorkQueue(total_samples=60 * 20, global_batch=60, staleness_bound=2, **QUORUM))
    go_on, wanted = threading.Event(), {}

    def hang(_):
        assert go_on.wait(30)

    def run(number, **settings):
        wanted[number] = worker(server, number, momentum=0.0, **settings)

    with threads(*(partial(run, number) for number in range(3)), partial(run, 3, on_item=hang)):
        while len(server._peers) < 4:  # all have begun
            server.serve(0.1)
        for _ in range(10):
            assert 3 not in [work.worker for work in server.collect().work_items]
            server.publish()
        go_on.set()
        while server.collect() is not None:
            server.publish()
        server.finish()
    assert server.queue.refused["late"] >= 1
    assert max(server.queue.histogram) <= 2
    assert server.queue.applied_ranges == [[0, 1200]]
    assert sum(wanted.values()) >= 60


def test_the_item_of_a_worker_lost_in_its_middle_is_taken_by_another():
    model, *_ = problem()
    server = ParameterServer(model.parameters(), WorkQueue(total_samples=200, global_batch=40, gradients_per_update=2))

    def die():
        other, inputs, targets = problem()
        with ParameterClient(server.address, server.token, other.parameters(), worker=1) as client:
            work = client.pull()
            gradient(other, inputs, targets, work.start, CUT.local_batch)  # the first of four updates

    with threads(die):
        while server._peers.get(1) is None or server.queue.outstanding == []:
            server.serve(0.1)
    with threads(partial(worker, server, 0)):
        updates = 0
        while server.collect() is not None:
            server.publish()
            updates += 1
        server.finish()
    assert updates == 5
    assert server.queue.applied_ranges == [[0, 200]]
