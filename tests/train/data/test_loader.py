"""Micro-batches: on a CPU the bits that were always fed; on a GPU, for which there is a stand-in, the same bits, without waiting."""

import gc
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from tests.limits import LIMIT_S
from tests.stand_in import GPU, Moves, OnGPU, inner_of, waits
from torch.utils.data import Dataset, TensorDataset

from bigbatch.core.checks import UserError
from bigbatch.train.data import loader as module
from bigbatch.train.data.loader import load_micro_batches, num_loaders

CPU = torch.device("cpu")
CHANCE = torch.Generator().manual_seed(0)
INPUTS = {
    "float32": torch.randn(50, 3, 4, generator=CHANCE),
    "float64": torch.randn(50, 3, 4, generator=CHANCE, dtype=torch.float64),
    "float16": torch.randn(50, 3, 4, generator=CHANCE).half(),
    "bytes": torch.randint(256, (50, 3, 4), generator=CHANCE, dtype=torch.uint8),
    "not contiguous": torch.randn(4, 3, 50, generator=CHANCE).permute(2, 1, 0),
}
TARGETS = torch.randint(10, (50,), generator=CHANCE)
ORDER = torch.randperm(50, generator=CHANCE)


class Items(Dataset):
    """The same, one by one."""

    def __init__(self, inputs, more=None):
        self.inputs, self.more = inputs, more

    def __len__(self):
        return 50

    def __getitem__(self, i):
        return self.inputs[i], int(TARGETS[i])


@pytest.fixture
def moved_bytes(monkeypatch):
    """Bytes of all that the stand-in is sent, and how much of its memory is free; and a mode that looks at it."""
    sent, free = [], {"bytes": 1 << 30}
    monkeypatch.setattr(module, "free_bytes", lambda device: free["bytes"])
    monkeypatch.setattr(module, "num_devices", lambda kind: 1)

    class UpdateMeasurement(Moves):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = super().__torch_dispatch__(func, types, args, kwargs)
            if func._schema.name == "aten::_to_copy" and isinstance(result, OnGPU) and not isinstance(args[0], OnGPU):
                sent.append(result.inner.nbytes)
            return result

    return sent, free, UpdateMeasurement


def plain(inputs, dtype):
    return [(inputs[i].to(dtype if inputs.is_floating_point() else None), TARGETS[i]) for i in ORDER.split(16)]


def assert_equal(fed, expected):
    assert len(fed) == len(expected)
    for (x, y), (inputs, targets) in zip(fed, expected, strict=True):
        assert x.dtype == inputs.dtype
        assert torch.equal(x, inputs)
        assert torch.equal(y, targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", INPUTS)
def test_on_a_cpu(name, dtype):
    fed = list(load_micro_batches(TensorDataset(INPUTS[name], TARGETS), ORDER.split(16), device=CPU, dtype=dtype))
    assert_equal(fed, plain(INPUTS[name], dtype))
    assert all(x.data_ptr() % 64 == 0 for x, _ in fed)


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", INPUTS)
def test_on_a_gpu(moved_bytes, name, dtype, fits):
    sent, free, mode = moved_bytes
    inputs = INPUTS[name]
    size = inputs.nbytes + TARGETS.nbytes
    free["bytes"] = 4 * size if fits else 4 * size - 1
    dataset = TensorDataset(inputs, TARGETS)
    waits.clear()
    with mode():
        fed = [pair for _ in range(2) for pair in load_micro_batches(dataset, ORDER.split(16), device=GPU, dtype=dtype)]
    assert waits == [], "nothing waits for the GPU"
    assert all(isinstance(t, OnGPU) for pair in fed for t in pair)
    assert_equal([(x.inner, y.inner) for x, y in fed], 2 * plain(inputs, dtype))
    indices = [8 * len(i) for i in ORDER.split(16)]
    whole = [50 * 12 * min(inputs.itemsize, dtype.itemsize if inputs.is_floating_point() else 1), TARGETS.nbytes]
    if fits:
        assert sorted(sent) == sorted(whole + 2 * indices), "the data set once, and indices"
    else:
        assert sorted(sent) == sorted(2 * [n for i in ORDER.split(16) for n in (inputs[i].nbytes, TARGETS[i].nbytes)])


def test_workers_that_share_a_gpu_share_its_memory(moved_bytes, monkeypatch):
    _, free, mode = moved_bytes
    dataset = TensorDataset(INPUTS["float32"], TARGETS)
    free["bytes"] = 8 * (INPUTS["float32"].nbytes + TARGETS.nbytes)
    for workers, resident in ((3, False), (2, True)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(workers))
        with mode():
            list(load_micro_batches(dataset, [ORDER], device=GPU, dtype=torch.float32))
        assert (dataset in module._held and bool(module._held[dataset])) == resident


def test_what_is_changed_in_place_is_moved_anew_and_what_is_gone_is_let_go(moved_bytes):
    sent, _, mode = moved_bytes
    inputs = INPUTS["float32"].clone()
    dataset = TensorDataset(inputs, TARGETS)
    with mode():
        for change in (0.0, 1.0):
            inputs += change
            ((x, _),) = load_micro_batches(dataset, [ORDER], device=GPU, dtype=torch.float32)
            assert torch.equal(x.inner, inputs[ORDER])
    assert sent.count(inputs.nbytes) == 2
    before = len(module._held)
    del dataset, x
    gc.collect()
    assert len(module._held) == before - 1


def test_batches_that_go_to_a_gpu_are_read_one_ahead(moved_bytes):
    _, free, mode = moved_bytes
    free["bytes"] = 0
    read = []
    batches = (read.append(len(read)) or index for index in ORDER.split(16))
    with mode():
        fed = load_micro_batches(TensorDataset(INPUTS["float32"], TARGETS), batches, device=GPU, dtype=torch.float32)
        seen = [len(read) for _ in fed]
    assert seen == [2, 3, 4, 4]


# --------------------------------------------------------------------------------------------------------------- processes that load


def test_cores_are_shared_by_the_workers_of_a_machine(monkeypatch):
    monkeypatch.setattr(module, "usable_cores", lambda: 16)
    shares = []
    for workers in ("", "1", "4", "64"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", workers)
        shares.append(num_loaders())
    assert shares == [8, 8, 2, 1]


@pytest.mark.parametrize("place", ["cpu", "gpu"])
def test_a_data_set_that_is_read_by_other_processes(monkeypatch, place):
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    dataset = Items(INPUTS["float64"])
    with Moves():
        fed = list(load_micro_batches(dataset, ORDER.split(16), device=CPU if place == "cpu" else GPU, dtype=torch.float32))
    assert_equal([(inner_of(x), inner_of(y)) for x, y in fed], plain(INPUTS["float64"], torch.float32))


def test_a_data_set_that_does_not_pickle_is_named_with_the_reason_and_a_remedy(monkeypatch):
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    dataset = Items(INPUTS["float32"], more=lambda: None)
    with pytest.raises(UserError, match=r"^data set Items: can't be handed to the processes that load it \(.*lambda.*\); define its class"):
        next(load_micro_batches(dataset, [ORDER], device=GPU, dtype=torch.float32))


SCRIPT = """
import torch
from torch.utils.data import Dataset
from bigbatch.train import fit
from bigbatch.train.data import loader

class Own(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return torch.ones(1), 0

if loader.current_process().name != "MainProcess":
    fit("digits/mlp")
next(loader.load_micro_batches(Own(), [torch.arange(4)], device=torch.device("meta"), dtype=torch.float32))
"""


def test_data_are_loaded_in_a_thread_while_others_draw_random_numbers():
    """As by Optuna with n_jobs: a fork made while torch's generator is locked would wait for it forever."""
    done, seen = threading.Event(), []

    def draw():
        while not done.is_set():
            torch.randn(20_000)

    def load():
        for _ in range(8):
            ((_, targets),) = load_micro_batches(Items(INPUTS["float32"]), [ORDER[:5]], device=CPU, dtype=torch.float32)
            seen.append(targets.tolist())

    others = [threading.Thread(target=draw, daemon=True) for _ in range(2)]
    loading = threading.Thread(target=load, daemon=True)
    for thread in (*others, loading):
        thread.start()
    loading.join(LIMIT_S)
    done.set()
    assert seen == [TARGETS[ORDER[:5]].tolist()] * 8


def test_a_script_without_a_main_guard_is_told_so_and_does_not_train_twice(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    path = ":".join(filter(None, sys.path))
    environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "1000", "PATH": str(Path(sys.executable).parent)}
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 1
    assert "a process that loads data came to train: put what your script does below `if __name__" in done.stderr
    assert "UserError: data set Own: a process that loads it ended; what it printed says why" in done.stderr
