"""Workers agree on backends before they exchange anything."""

from pathlib import Path

import pytest
import torch
from tests.distributed.ranks import run_ranks

from bigbatch.comm import ranks
from bigbatch.comm.rendezvous.backends import choose_backend


@pytest.mark.parametrize(
    ("places", "backend"),
    [
        ([("cpu", ""), ("cpu", "")], "gloo"),
        ([("cuda", "node1 a"), ("cuda", "node1 b"), ("cuda", "node2 a")], "cpu:gloo,cuda:nccl"),
        ([("cuda", "a"), ("cuda", "b"), ("cuda", "a")], "gloo"),
        ([("xpu", "a"), ("xpu", "b")], "cpu:gloo,xpu:xccl"),
    ],
)
def test_nccl_only_where_each_worker_has_a_gpu_of_its_own(places, backend):
    decided = choose_backend(places)
    assert decided["backend"] == backend
    assert ("note" in decided) == (backend == "gloo" and places[0][0] != "cpu")


def test_the_note_names_two_that_share_and_how_many_workers_would_not():
    note = choose_backend([("cuda", "a"), ("cuda", "b"), ("cuda", "b"), ("cuda", "a")])["note"]
    assert note.startswith("workers 1 and 2 share a GPU (2 GPUs for 4 workers): all tensors use gloo")
    assert note.endswith("2 workers, each with its own GPU, would use nccl")


def test_a_worker_without_a_gpu_among_others_is_named():
    assert choose_backend([("cuda", "a"), ("cuda", "b"), ("cpu", "")])["error"].startswith(
        "worker 0 is on cuda and worker 2 on cpu: all need the same type of device"
    )


def test_alone_on_the_second_gpu_it_is_the_current_one_meanwhile(monkeypatch):
    """So that what names no device, such as a time that is taken, means the one that computes."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    now = []

    class Current:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            now.append(self.index)

        def __exit__(self, *error):
            now.pop()

    monkeypatch.setattr(torch.accelerator, "device_index", Current)
    monkeypatch.setattr(ranks, "choose_device", torch.device)
    with ranks.process_group(device="cuda:1") as alone:
        assert (alone.device, alone.world_size, now) == (torch.device("cuda:1"), 1, [1])
    assert now == []


def test_two_workers_that_believe_to_be_on_gpus(tmp_path):
    run_ranks(Path(__file__).with_name("backends_ranks.py"), 2, tmp_path)
