"""What workers of this machine are forked from, and what each is given."""

import os
import subprocess
import sys

import pytest
from tests.distributed.ranks import ROOT
from tests.limits import LIMIT_S

from bigbatch.comm.launch.launcher import Workers
from bigbatch.comm.parameter_server import supervisor
from bigbatch.core.storage.saved import Saved

CHECK = """
import importlib, os, torch
asked = []
for name in ("is_available", "device_count", "init", "_lazy_init", "current_device", "get_device_properties"):
    setattr(torch.cuda, name, lambda *args, name=name, **settings: asked.append(name))
from bigbatch.cli.process.workers import IMPORTS
for name in IMPORTS:
    importlib.import_module(name)
assert asked == [], asked
if os.path.exists("/proc/self/task"):
    assert len(os.listdir("/proc/self/task")) == 1, os.listdir("/proc/self/task")
"""


def test_what_is_imported_before_the_fork_asks_no_gpu_and_starts_no_thread():
    """A process that has, can't be forked: CUDA refuses to work in the child, and locks of threads are held for ever."""
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("workers", "told"),  # rank, local rank, local workers, number of the group, whether torch asks NVML, GPUs
    [
        ("2", ["0 0 2 0 0 2", "1 1 2 0 0 2"]),
        ("2:3", ["0 0 2 1 0 2", "0 0 3 0 0 2", "1 1 2 1 0 2", "1 1 3 0 0 2", "2 2 3 0 0 2"]),
    ],
)
def test_each_worker_of_each_group_has_a_local_rank_of_its_own_and_no_gpu_was_initialised_before(workers, told):
    done = fork(workers)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == told


def test_a_device_that_is_not_here_is_refused_before_there_are_workers():
    done = fork("2", BIGBATCH_DEVICE="cuda:2")
    assert done.stdout == ""
    assert "UserError: device cuda:2: is not here; choose among cpu, cuda:0, cuda:1" in done.stderr


NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"


def fork(workers, **environment):
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    command = [sys.executable, "-m", "tests.comm.forking", workers]
    inherited = {name: value for name, value in os.environ.items() if name != NVML}  # Lightning sets it where it is imported
    environment = {**inherited, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def test_workers_and_servers_of_a_parameter_server_have_local_ranks_too(monkeypatch):
    started = []
    monkeypatch.setattr(supervisor.subprocess, "Popen", lambda command, env: started.append(env))
    job = supervisor._Job(["train"], Workers(3, 3), Saved(None, []), num_servers=2)
    for kind, number in (("server", 0), ("server", 1), ("worker", 0), ("worker", 2)):
        job._start(kind, number)
    assert [(env["LOCAL_RANK"], env["LOCAL_WORLD_SIZE"]) for env in started] == [("0", "2"), ("1", "2"), ("0", "3"), ("2", "3")]
