"""Updates in a plain PyTorch loop, with a DataLoader: every sample once an epoch, and the gradient of the whole batch."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from bigbatch.batching import BatchSteps, Bounds, NoiseScaleRule, Proposal, Seesaw, UpdateMeasurement
from bigbatch.batching.updates import Updates, num_samples
from bigbatch.core.checks import UserError
from bigbatch.core.clock import Clock


def loader(n=103, micro_batch=8, **options):
    chance = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.arange(n).double().unsqueeze(1), torch.randn(n, generator=chance, dtype=torch.float64))
    return DataLoader(data, batch_size=micro_batch, shuffle=True, generator=torch.Generator().manual_seed(1), **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_sample_once_an_epoch_whatever_the_batch_does(workers):
    updates = Updates(loader(num_workers=workers), global_batch=16)
    for _ in range(2):
        seen, sizes = [], []
        for number, update in enumerate(updates):
            seen += [int(x) for inputs, _ in update for x in inputs]
            sizes.append(update.num_samples)
            updates.global_batch = 16 * (1 + number % 3)
        assert sorted(seen) == list(range(103))
        assert sum(sizes) == 103
    assert sizes[1:4] == [16, 32, 16 * 2 + 7]  # the second epoch begins with 16: decided at the end of the first


def test_the_incomplete_update_is_dropped_if_asked():
    assert [u.num_samples for u in Updates(loader(), global_batch=40, drop_last=True)] == [40, 40]
    assert [u.num_samples for u in Updates(loader(), global_batch=40)] == [40, 40, 23]


def test_the_batch_is_made_of_whole_micro_batches():
    assert next(iter(Updates(loader(), global_batch=1))).num_samples == 8
    assert next(iter(Updates(loader(), global_batch=21))).num_samples == 24
    assert next(iter(Updates(loader(), global_batch=64, world_size=4))).num_samples == 64  # two micro-batches here
    assert len(next(iter(Updates(loader(), global_batch=64, world_size=4))).micro_batches) == 2


def test_ragged_micro_batches_make_the_gradient_of_the_whole():
    """By hand: d/dw of the mean of (w x - y)^2 over the update's samples, the last micro-batch shorter."""
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    *_, update = Updates(loader(), global_batch=40)
    for inputs, targets in update:
        ((inputs[:, 0] * w - targets).square().sum() / update.num_samples).backward()
    x, y = (torch.cat(parts) for parts in zip(*update, strict=True))
    assert len(x) == update.num_samples == 23
    torch.testing.assert_close(w.grad, (-2 * x[:, 0] * y).mean().view(1), rtol=1e-14, atol=0)


class Wishes:
    def propose(self, global_batch):
        return Proposal(1000.0, "more")


def test_a_rule_decides_in_one_line():
    updates = Updates(loader(), global_batch=16)
    assert updates.follow(NoiseScaleRule(exchange_rate=100.0), Bounds(8, 64, 8)) is None
    sizes = []
    for update in updates:
        sizes.append(update.num_samples)
        reason = updates.follow(Wishes(), Bounds(8, 64, 8))
    assert sizes == [16, 32, 55]
    assert updates.global_batch == 64
    assert reason == "more; the largest allowed"
    rule = NoiseScaleRule(exchange_rate=16.0)
    for _ in range(30):
        rule.observe(UpdateMeasurement(global_batch=64, signal=1.0, noise=64.0))
    assert updates.follow(rule, Bounds(8, 64, 8)) is not None
    assert updates.global_batch == 32


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        ((torch.ones(5, 2), torch.ones(5)), 5),
        ([torch.ones(5, 2), torch.ones(5)], 5),
        ({"ids": torch.ones(4, 7), "labels": torch.ones(4)}, 4),
        (({"ids": torch.ones(6, 2)}, torch.ones(6)), 6),
        (torch.ones(3), 3),
        ([{"boxes": 1}, {"boxes": 2}], 2),
    ],
)
def test_samples_of_a_batch(batch, samples):
    assert num_samples(batch) == samples


def test_bad_input():
    with pytest.raises(UserError, match="global_batch = 0"):
        Updates([], global_batch=0)
    updates = Updates([3], global_batch=2)
    with pytest.raises(UserError, match="a batch of int: has no length"):
        list(updates)
    with pytest.raises(UserError, match="global_batch = -1"):
        updates.global_batch = -1


def test_a_schedule_is_asked_by_the_loop_and_refused_as_a_rule_that_proposes():
    steps, updates, clock, sizes = BatchSteps(global_batch=16, steps=[(32, 24), (70, 40)]), Updates(loader(), global_batch=16), Clock(), []
    for update in updates:
        sizes.append(update.num_samples)
        clock = clock.after(update.num_samples)
        updates.global_batch = steps.at(clock).global_batch
    assert sizes == [16, 16, 24, 24, 23]
    for rule in (steps, Seesaw(global_batch=16, largest=64)):
        with pytest.raises(UserError, match=r"(BatchSteps|Seesaw): is known beforehand and proposes nothing; set global_batch = rule.at"):
            updates.follow(rule, Bounds(8, 64, 8))


@pytest.mark.parametrize(
    "sample",
    [
        lambda i: ({"a": torch.ones(3), "b": torch.ones(2)}, i),
        lambda i: ((torch.ones(3), torch.ones(2)), i),
        lambda i: ({"a": torch.ones(3)}, {"b": torch.tensor(i)}),
        lambda i: {"a": (torch.ones(3), torch.ones(2))},
        lambda i: (torch.ones(3), i),
        lambda i: torch.ones(3),
    ],
)
def test_samples_are_counted_however_a_loader_nests_them(sample):
    """A DataLoader makes lists of tuples: of a pair whose inputs are several it used to count two samples."""
    loader = DataLoader([sample(i) for i in range(48)], batch_size=8)
    update = next(iter(Updates(loader, global_batch=32)))
    assert (len(update.micro_batches), update.num_samples) == (4, 32)


def test_a_list_of_samples_is_counted_by_its_length():
    assert num_samples([{"a": torch.ones(3)}, {"a": torch.ones(5)}]) == 2
    assert num_samples([(torch.ones(3), 0), (torch.ones(4), 1), (torch.ones(5), 2)]) == 3
