"""ClockLR under resumes, copies, new groups, rates that are tensors, and Accelerate."""

import copy
import io
import pickle
import sys
import types
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bigbatch.core.checks import UserError
from bigbatch.core.clock import Clock
from bigbatch.recipe import Recipe
from bigbatch.schedules import AutoWU, ClockLR, constant, cosine, gradual_warmup, product, schedule_of, sequence, set_lr

SCHEDULE = product(partial(gradual_warmup, warmup_samples=400), partial(cosine, total_samples=4_000))
BATCH = 100


def weight(value=0.0):
    return torch.full((1,), value, requires_grad=True)


def sgd(lr=0.5, **settings):
    return torch.optim.SGD([{"params": [weight()], "lr": lr}], lr=lr, **settings)


def steps(optimizer, scheduler, num):
    for _ in range(num):
        optimizer.step()
        scheduler.step()


def rates(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def tensor_lr(value=0.5, shape=()):
    return torch.full(shape, value)


@pytest.mark.parametrize("order", ["optimizer built scheduler", "built optimizer scheduler", "built scheduler optimizer"])
@pytest.mark.parametrize("make_lr", [float, tensor_lr], ids=["float", "tensor"])
def test_a_resume_goes_on_at_the_right_rate_in_any_order(order, make_lr):
    optimizer = sgd(make_lr(0.5))
    scheduler = ClockLR(optimizer, SCHEDULE, global_batch=BATCH)
    steps(optimizer, scheduler, 7)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), scheduler.state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    other, resumed = sgd(make_lr(0.5)), None
    for act in order.split():
        if act == "optimizer":
            other.load_state_dict(states[0])
        elif act == "built":
            resumed = ClockLR(other, SCHEDULE, global_batch=999)
        else:
            resumed.load_state_dict(states[1])
    for t in range(7, 12):
        want = pytest.approx([0.5 * SCHEDULE(Clock(BATCH * t, t))], rel=1e-6)
        assert rates(other) == want
        assert [float(lr) for lr in resumed.get_last_lr()] == want
        steps(other, resumed, 1)


def test_a_changed_schedule_holds_from_the_next_update_on():
    optimizer = sgd()
    scheduler = ClockLR(optimizer, SCHEDULE, global_batch=BATCH)
    steps(optimizer, scheduler, 7)
    longer = partial(cosine, total_samples=8_000)
    ClockLR(optimizer, longer, global_batch=BATCH).load_state_dict(scheduler.state_dict())
    assert rates(optimizer) == pytest.approx([0.5 * longer(Clock(700, 7))])


def test_a_schedule_that_learns_is_saved_along():
    def run(scheduler, autowu, num):
        for _ in range(num):
            loss = 1 + (torch.log10(torch.tensor(rates(scheduler.optimizer)[0])) + 2).square().item()
            scheduler.optimizer.step()
            autowu.observe(scheduler.clock, loss)
            scheduler.step()

    whole = AutoWU(total_samples=10_000)
    scheduler = ClockLR(sgd(), whole, global_batch=BATCH)
    run(scheduler, whole, 60)
    assert whole.switch is not None
    fresh = AutoWU(total_samples=10_000)
    resumed = ClockLR(sgd(), fresh, global_batch=BATCH)
    resumed.load_state_dict(scheduler.state_dict())
    assert fresh.switch == whole.switch
    assert rates(resumed.optimizer) == rates(scheduler.optimizer)


@pytest.mark.parametrize("make_lr", [float, tensor_lr], ids=["float", "tensor"])
def test_a_group_that_is_added_later_follows_from_its_first_update(make_lr):
    optimizer = sgd(make_lr(0.5))
    scheduler = ClockLR(optimizer, SCHEDULE, global_batch=BATCH)
    steps(optimizer, scheduler, 2)
    late = weight(1.0)
    late.grad = torch.ones(1)
    optimizer.add_param_group({"params": [late], "lr": make_lr(2.0)})
    optimizer.add_param_group({"params": [weight()]})  # the optimizer's own rate, which is one tensor for all where it is one
    optimizer.step()
    assert 1 - late.item() == pytest.approx(2.0 * SCHEDULE(Clock(200, 2)), rel=1e-5)
    scheduler.step()
    want = SCHEDULE(Clock(300, 3))
    assert rates(optimizer) == pytest.approx([0.5 * want, 2.0 * want, 0.5 * want])
    assert len(scheduler.get_last_lr()) == 3
    with pytest.raises(UserError, match="state of 3 parameter groups: the optimizer has 1; add the missing ones before loading"):
        ClockLR(sgd(), SCHEDULE, global_batch=BATCH).load_state_dict(scheduler.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("make", [schedule_of, lambda recipe: sequence([(constant, 200)], AutoWU(total_samples=900))])
def test_can_be_copied_and_pickled(copied, make):
    schedule = make(Recipe.named("digits/mlp"))
    scheduler = ClockLR(sgd(), schedule, global_batch=BATCH)
    steps(scheduler.optimizer, scheduler, 3)
    twin = copied(scheduler)
    assert twin.optimizer is not scheduler.optimizer
    for one in (scheduler, twin):
        one.optimizer.add_param_group({"params": [weight()], "lr": 2.0})
        steps(one.optimizer, one, 2)
    assert twin.clock == scheduler.clock == Clock(500, 5)
    assert rates(twin.optimizer) == rates(scheduler.optimizer) == [lr * schedule(twin.clock) for lr in (0.5, 2.0)]


class NoDeviceRead(TorchDispatchMode):
    """Fails where a tensor's value is read, which would make a GPU's queue run dry."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.name() != "aten::_local_scalar_dense", "a device value was read"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_tensor_is_filled_and_never_read(shape):
    lr = tensor_lr(0.5, shape)
    optimizer = torch.optim.SGD([weight()], lr=lr, momentum=0.9)
    group = optimizer.param_groups[0]
    scheduler = ClockLR(optimizer, SCHEDULE, global_batch=BATCH, momentum_correction=True)
    with NoDeviceRead():
        steps(optimizer, scheduler, 6)
    assert group["lr"] is lr
    assert float(lr) == pytest.approx(0.5 * SCHEDULE(Clock(600, 6)))
    with NoDeviceRead():
        for _ in range(3):
            set_lr(optimizer, 0.25)
    assert group["lr"] is lr
    assert float(lr) == 0.125
    fresh = torch.optim.SGD([weight()], lr=(own := tensor_lr(0.5, shape)))
    set_lr(fresh, 0.5)
    set_lr(fresh, 0.5)
    assert fresh.param_groups[0]["lr"] is own
    assert float(own) == 0.25, "the peak was scaled with the rate"


@pytest.mark.parametrize("make_lr", [float, tensor_lr], ids=["float", "tensor"])
def test_momentum_is_corrected_whatever_holds_the_rate(make_lr):
    optimizer = sgd(make_lr(0.5), momentum=0.9)
    scheduler = ClockLR(optimizer, SCHEDULE, global_batch=BATCH, momentum_correction=True)
    for t in range(1, 10):
        steps(optimizer, scheduler, 1)
        before, now = (SCHEDULE(Clock(BATCH * s, s)) for s in (t - 1, t))
        assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.9 * now / before if before else 0.9)


def test_momentum_after_a_resume_starts_from_the_group_s_own():
    """By Equation 10 the update at 300 samples, at 3/4 of the peak after 2/4, has 0.9 * 3/2; not that factor twice."""
    optimizer = sgd(momentum=0.9)
    scheduler = ClockLR(optimizer, SCHEDULE, global_batch=BATCH, momentum_correction=True)
    steps(optimizer, scheduler, 3)
    corrected = optimizer.param_groups[0]["momentum"]
    assert corrected == pytest.approx(0.9 * 1.5, rel=0.02)
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    steps(optimizer, scheduler, 1)
    other = sgd(momentum=0.9)
    other.load_state_dict(saved[0])
    resumed = ClockLR(other, SCHEDULE, global_batch=BATCH, momentum_correction=True)
    resumed.load_state_dict(saved[1])
    assert other.param_groups[0]["momentum"] == corrected
    steps(other, resumed, 1)
    assert other.param_groups[0]["momentum"] == optimizer.param_groups[0]["momentum"] == pytest.approx(0.9 * 4 / 3, rel=0.03)
    restarted = sgd(momentum=0.9)
    restarted.load_state_dict(saved[0])
    ClockLR(restarted, SCHEDULE, global_batch=BATCH, momentum_correction=True)
    assert restarted.param_groups[0]["momentum"] == 0.9


def test_refuses_to_correct_a_momentum_that_is_not_there():
    with pytest.raises(UserError, match="group 0 of Adam has no momentum; leave momentum_correction out"):
        ClockLR(torch.optim.Adam([weight()]), SCHEDULE, global_batch=BATCH, momentum_correction=True)


class AcceleratedScheduler:
    """What accelerate 1.15.0's `AcceleratedScheduler.step` (src/accelerate/scheduler.py) does after a synchronised, unskipped update."""

    def __init__(self, scheduler, num_processes, split_batches=False):
        self.scheduler, self.num_processes, self.split_batches = scheduler, num_processes, split_batches

    def step(self):
        for _ in range(1 if self.split_batches else self.num_processes):
            self.scheduler.step()


@pytest.mark.parametrize("split_batches", [False, True])
@pytest.mark.parametrize("num_processes", [1, 4])
def test_counts_once_through_accelerate(monkeypatch, num_processes, split_batches):
    state = types.ModuleType("accelerate.state")
    state.is_initialized = lambda: True
    state.AcceleratorState = lambda: types.SimpleNamespace(num_processes=num_processes)
    monkeypatch.setitem(sys.modules, "accelerate.state", state)
    optimizer = sgd(momentum=0.9)
    scheduler = ClockLR(optimizer, SCHEDULE, global_batch=BATCH, momentum_correction=True)
    steps(optimizer, AcceleratedScheduler(scheduler, num_processes, split_batches), 3)
    assert scheduler.clock == Clock(300, 3)
    assert rates(optimizer) == [0.5 * SCHEDULE(Clock(300, 3))]
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.9 * SCHEDULE(Clock(300, 3)) / SCHEDULE(Clock(200, 2)))


def test_counts_every_call_without_accelerate():
    """A captured CUDA graph is replayed without `optimizer.step()`; plots step a scheduler alone."""
    optimizer = sgd()
    scheduler = ClockLR(optimizer, SCHEDULE, global_batch=BATCH)
    steps(optimizer, scheduler, 1)
    scheduler.step()
    scheduler.step()
    assert scheduler.clock == Clock(300, 3)
