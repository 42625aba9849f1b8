import contextlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bigbatch.layers import ghost_groups
from bigbatch.tasks.data.locate import cache_folder
from bigbatch.train.data import micro_batch as module
from bigbatch.train.data.micro_batch import fastest_micro_batch, micro_batches


@given(n=st.integers(1, 5000), micro=st.integers(1, 3000), ghost=st.one_of(st.none(), st.integers(1, 600)))
def test_cuts_sum_up_and_never_cut_a_normalisation_group(n, micro, ghost):
    sizes = micro_batches(n, micro, ghost)
    assert sum(sizes) == n
    if ghost is None:
        assert max(sizes) <= micro
    else:
        groups = [group for size in sizes for group in ghost_groups(size, ghost)]
        assert groups == ghost_groups(n, ghost)


def test_a_global_group_is_one_pass():
    assert micro_batches(1000, 10, "global") == [1000]


class _Clock:
    """A machine on which a sample takes a time that depends on the micro-batch."""

    def __init__(self, seconds_per_sample):
        self.seconds_per_sample, self.now, self.tried = seconds_per_sample, 0.0, []

    def __call__(self, model, size):
        if self.seconds_per_sample[size] is None:
            raise torch.OutOfMemoryError("does not fit")
        self.now += size * self.seconds_per_sample[size]
        self.tried.append(size)


def choose(monkeypatch, costs, key, **kwargs):
    clock = _Clock(costs)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock.now)
    size = fastest_micro_batch(clock, nn.Linear(1, 1), key=key, **{"global_batch": 1024, "ghost_batch": None, **kwargs})
    return size, sorted(set(clock.tried))


COSTS = {16: 9e-4, 32: 5e-4, 64: 3e-4, 128: 2e-4, 256: 3.2e-4, 512: 4e-4, 1024: 5e-4}


def test_takes_the_fastest_and_stops_once_larger_is_slower(monkeypatch):
    size, tried = choose(monkeypatch, COSTS, "fastest")
    assert size == 128
    assert 1024 not in tried


def test_one_hiccup_does_not_stop_the_search(monkeypatch):
    assert choose(monkeypatch, {**COSTS, 32: 9e-3}, "hiccup")[0] == 128


def test_takes_the_largest_that_fits_where_larger_is_faster(monkeypatch):
    costs = {16: 9e-4, 32: 8e-4, 64: 7e-4, 128: 6e-4, 256: 5e-4, 512: None, 1024: None}
    assert choose(monkeypatch, costs, "memory")[0] == 256


def test_keeps_to_multiples_of_the_normalisation_group(monkeypatch):
    costs = {96: 3e-4, 192: 2e-4, 384: 1e-4, 768: 9e-5}
    assert choose(monkeypatch, costs, "ghost", ghost_batch=96, global_batch=960) == (768, [96, 192, 384, 768])
    size, tried = choose(monkeypatch, COSTS, "ghost 128", ghost_batch=256)
    assert size == 256
    assert min(tried) == 256


def test_is_remembered_per_key(monkeypatch):
    assert choose(monkeypatch, COSTS, "remembered")[0] == 128
    size, tried = choose(monkeypatch, dict.fromkeys(COSTS, 1.0), "remembered")
    assert (size, tried) == (128, [])
    files = list((cache_folder() / "micro_batch").glob("*.json"))
    assert any(json.loads(f.read_text())["key"] == "remembered" for f in files)


def test_is_remembered_per_kind_of_gpu(monkeypatch):
    """Whatever its number, which workers don't share; and each look at the clock waits for the GPU that computes."""
    waited = []
    monkeypatch.setattr(module, "synchronize", waited.append)
    monkeypatch.setattr(module, "forked_random", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(module, "name_of", lambda device: None if device.type == "cpu" else f"kind {device.index // 2}")
    measured = []
    for device in ("cpu", "cuda:0", "cuda:1", "cuda:2"):
        waited.clear()
        size, tried = choose(monkeypatch, COSTS, "per GPU", device=torch.device(device))
        assert size == 128
        assert set(waited) == ({torch.device(device)} if tried else set())
        measured.append(bool(tried))
    assert measured == [True, True, False, True]


def test_leaves_model_and_random_state_alone(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()

    def run(copied, size):
        copied(torch.randn(size, 4)).sum().backward()

    fastest_micro_batch(run, model, global_batch=64, ghost_batch=None, key="untouched")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_small_batch_needs_no_measurement():
    assert fastest_micro_batch(pytest.fail, nn.Linear(1, 1), global_batch=16, ghost_batch=16, key="small") == 16
