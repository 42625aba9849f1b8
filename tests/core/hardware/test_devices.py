"""Which device a process computes on, on machines with other GPUs than this one: torch's own words are replaced."""

from types import SimpleNamespace

import pytest
import torch

from bigbatch.core.checks import UserError
from bigbatch.core.hardware import devices
from bigbatch.core.hardware.devices import (
    choose_device,
    forked_random,
    identity_of,
    name_of,
    num_devices,
    random_states,
    restore_random_state,
)


class GPUs(SimpleNamespace):
    """What `torch.cuda` is on a machine with some GPUs."""

    def __init__(self, number):
        self.states = [torch.full((16,), i, dtype=torch.uint8) for i in range(number)]

    def is_available(self):
        return bool(self.states)

    def device_count(self):
        return len(self.states)

    def get_device_name(self, device):
        return f"GPU of kind {device.index % 2}"

    def get_device_properties(self, device):
        return SimpleNamespace(uuid=f"GPU-{device.index}")

    def get_rng_state(self, device):
        return self.states[torch.device(device).index]

    def set_rng_state(self, state, device):
        self.states[torch.device(device).index] = state


@pytest.fixture
def machine(monkeypatch):
    """Makes this one have so many GPUs."""

    def make(number):
        gpus = GPUs(number)
        monkeypatch.setattr(torch, "cuda", gpus)
        monkeypatch.setattr(torch, "get_device_module", lambda device: gpus if torch.device(device).type == "cuda" else torch.cpu)
        return gpus

    for name in ("LOCAL_RANK", "BIGBATCH_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    return make


def test_each_worker_of_a_machine_has_its_own_gpu(machine, monkeypatch):
    machine(2)
    assert [str(choose_device(local_rank=rank)) for rank in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [str(choose_device("cuda", local_rank=rank)) for rank in range(2)] == ["cuda:0", "cuda:1"]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(choose_device()) == "cuda:1"
    assert str(choose_device("cuda:0")) == "cuda:0"
    assert str(choose_device("cpu")) == str(choose_device("cpu:0")) == "cpu"


def test_what_the_environment_says_is_taken_where_nothing_is_asked_for(machine, monkeypatch):
    machine(2)
    monkeypatch.setenv("BIGBATCH_DEVICE", "cpu")
    assert str(choose_device()) == "cpu"
    assert str(choose_device("cuda")) == "cuda:0"


def test_without_a_gpu_it_is_the_cpu(machine):
    machine(0)
    assert str(choose_device()) == "cpu"
    assert num_devices("cuda") == 0


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("cuda:2", "is not here"),
        ("meta", "is not here"),
        ("xpu", "is not here"),
        ("gpu", "is not the name of a device"),
        ("cuda:x", "is not the name of a device"),
        ("mps", "has no float64"),
    ],
)
def test_what_cant_be_is_refused_with_what_is_here(machine, asked, why):
    machine(2)
    with pytest.raises(UserError, match=f"^device {asked}: {why}.*; choose among cpu, cuda:0, cuda:1$"):
        choose_device(asked)
    machine(0)
    with pytest.raises(UserError, match="choose among cpu$"):
        choose_device("cuda")


def test_two_workers_on_one_gpu_are_known_by_it_whatever_its_number(machine, monkeypatch):
    gpus = machine(2)
    assert identity_of(torch.device("cuda:0")) != identity_of(torch.device("cuda:1"))
    assert identity_of(torch.device("cpu")) == ""
    monkeypatch.setattr(gpus, "get_device_properties", lambda device: SimpleNamespace(), raising=False)  # does not tell
    seen = []
    for visible, number in (("0", 0), ("1", 0), ("0,1", 0), ("0,1", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        seen.append(identity_of(torch.device("cuda", number)))
    assert len(set(seen)) == 4


def test_a_gpu_has_a_name_and_the_cpu_has_none(machine):
    machine(2)
    assert [name_of(torch.device(d)) for d in ("cuda:1", "cpu")] == ["GPU of kind 1", None]


@pytest.mark.parametrize(("saved", "taken"), [([7], [7, 7]), ([5, 6], [5, 6]), ([5, 6, 7, 8], [5, 6]), ([], [0, 1])])
def test_random_states_of_more_or_fewer_gpus_than_there_are(machine, saved, taken):
    """One state is the worker's own; several are those of an earlier version, one for each GPU of the machine."""
    gpus = machine(2)
    states = [torch.full((16,), value, dtype=torch.uint8) for value in saved]
    restore_random_state(torch.device("cpu"), states)
    for index in range(2):
        restore_random_state(torch.device("cuda", index), states)
    assert [int(state[0]) for state in gpus.states] == taken
    assert [int(random_states(torch.device("cuda", 1))[0][0]), random_states(torch.device("cpu"))] == [taken[1], []]


def test_random_numbers_within_leave_the_cpu_s_as_they_were():
    before = torch.get_rng_state()
    with forked_random(torch.device("cpu")):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_current_or_waited_for_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "synchronize", pytest.fail)
    monkeypatch.setattr(torch.accelerator, "device_index", pytest.fail)
    devices.synchronize(torch.device("cpu"))
    with devices.current(torch.device("cpu")):
        pass
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    devices.synchronize(torch.device("cuda:1"))
    assert waited == [torch.device("cuda:1")]
