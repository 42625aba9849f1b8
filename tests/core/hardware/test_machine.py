import os
import sys

import pytest
import torch

from bigbatch.core.checks import OutputError
from bigbatch.core.hardware import machine
from bigbatch.core.hardware.cores import usable_cores
from bigbatch.core.hardware.machine import disk_speed, inspect_machine, matmul_gflops


class Clock:
    """Time that passes only when told to."""

    def __init__(self):
        self.now = 0.0

    def pass_s(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(machine.time, "perf_counter", lambda: clock.now)
    return clock


def test_facts():
    found = inspect_machine()
    assert found.versions["python"].split(".")[:2] == [str(part) for part in sys.version_info[:2]]
    assert found.versions["torch"] == torch.__version__
    assert len(found.gpus) == torch.cuda.device_count()
    assert "gloo" in found.backends
    assert ("nccl" in found.backends) <= bool(found.gpus)
    if found.memory_bytes is not None and found.available_bytes is not None:
        assert 2**28 < found.available_bytes < found.memory_bytes


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("9900000 100000", 8), ("", 8)]
)
def test_cores_are_those_of_the_affinity_and_the_quota(monkeypatch, tmp_path, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr("bigbatch.core.hardware.cores.CPU_QUOTA", tmp_path / "cpu.max")
    assert usable_cores() == 8
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores() == cores


def test_matrix_products_are_counted_by_hand(monkeypatch, clock):
    """A product of 1024 x 1024 is 2 x 1024^3 operations; each takes half a second here, and 2 s have room for four."""
    seen = []

    def multiply(a):
        seen.append((a.shape, torch.get_num_threads()))
        clock.pass_s(0.5)

    monkeypatch.setattr(machine, "_multiply", multiply)
    before = torch.get_num_threads()
    assert matmul_gflops(3, window_s=2.0) == pytest.approx(2 * 2 * 1024**3 / 1e9)
    assert seen == [((1024, 1024), 3)] * 5  # the first does not count
    assert torch.get_num_threads() == before


def test_a_product_slower_than_the_window_still_counts(monkeypatch, clock):
    monkeypatch.setattr(machine, "_multiply", lambda a: clock.pass_s(4.0))
    assert matmul_gflops(window_s=1.0) == pytest.approx(2 * 1024**3 / 4 / 1e9)


def test_a_slow_disk_is_known_early(monkeypatch, clock, tmp_path):
    """Each 8 MB piece takes 1 s, so 2 s end it after two; nothing stays behind."""
    monkeypatch.setattr(machine.os, "fsync", lambda file: clock.pass_s(1.0))
    monkeypatch.setattr(machine.os, "posix_fadvise", lambda *a: None, raising=False)
    reads = []

    class File:
        """What a temporary file does here, with reads that take time."""

        def __init__(self, **options):
            assert options["dir"] == tmp_path
            self.written = self.at = 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def write(self, chunk):
            self.written += len(chunk)
            return len(chunk)

        def fileno(self):
            return -1

        def seek(self, place):
            self.at = place

        def read(self, size):
            clock.pass_s(0.25 if self.at < self.written else 0.0)
            reads.append(size)
            self.at += size
            return b"x" * (self.at <= self.written)

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", File)
    disk = disk_speed(tmp_path, limit_s=2.0)
    assert disk.write_bytes_per_s == pytest.approx(8 * 2**20)
    assert disk.read_bytes_per_s == pytest.approx(4 * 8 * 2**20)
    assert len(reads) == 3


def test_a_real_disk(tmp_path):
    disk = disk_speed(tmp_path / "not" / "yet", num_bytes=1)
    assert disk.folder == str(tmp_path)
    assert disk.write_bytes_per_s > 0
    assert disk.read_bytes_per_s > 0
    assert disk.free_bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"output folder .*file: .*; choose a folder that you can write with --out"):
        disk_speed(tmp_path / "file")
