import io
from functools import partial

import pytest
import torch

from bigbatch.core.checks import UserError
from bigbatch.core.clock import Clock
from bigbatch.schedules import ClockLR, cosine, gradual_warmup, product, set_lr

SCHEDULE = product(partial(gradual_warmup, warmup_samples=400), partial(cosine, total_samples=4_000))


def sgd():
    a, b = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    return torch.optim.SGD([{"params": [a], "lr": 0.5}, {"params": [b], "lr": 2.0}])


def test_every_group_follows_the_pure_function():
    optimizer = sgd()
    scheduler = ClockLR(optimizer, SCHEDULE, global_batch=100)
    for t in range(45):
        want = SCHEDULE(Clock(samples=100 * t))
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.5 * want, 2.0 * want])
        optimizer.step()
        scheduler.step()


def test_a_changed_batch_moves_the_clock_in_samples():
    optimizer = sgd()
    scheduler = ClockLR(optimizer, SCHEDULE, global_batch=100)
    for batch in (100, 700, 200):
        scheduler.global_batch = batch
        optimizer.step()
        scheduler.step()
    assert scheduler.clock == Clock(samples=1_000, updates=3)
    assert scheduler.get_last_lr()[0] == pytest.approx(0.5 * SCHEDULE(Clock(samples=1_000)))


def test_state_is_plain_and_resumes_exactly():
    optimizer = sgd()
    scheduler = ClockLR(optimizer, SCHEDULE, global_batch=100)
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), scheduler.state_dict()], file)
    file.seek(0)
    optimizer_state, state = torch.load(file, weights_only=True)
    other = sgd()
    resumed = ClockLR(other, SCHEDULE, global_batch=999)
    other.load_state_dict(optimizer_state)
    resumed.load_state_dict(state)
    for _ in range(5):
        for o, s in ((optimizer, scheduler), (other, resumed)):
            o.step()
            s.step()
        assert [g["lr"] for g in other.param_groups] == [g["lr"] for g in optimizer.param_groups]


def test_set_lr_remembers_the_peaks():
    optimizer = sgd()
    for factor in (0.5, 0.0, 1.0):
        set_lr(optimizer, factor)
        assert [g["lr"] for g in optimizer.param_groups] == [0.5 * factor, 2.0 * factor]


def test_refuses_no_batch():
    with pytest.raises(UserError, match="global_batch = 0: must be a finite number above zero"):
        ClockLR(sgd(), SCHEDULE, global_batch=0)
