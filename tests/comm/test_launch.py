"""What workers of this machine are forked from."""

import subprocess
import sys

from tests.limits import LIMIT_S

CHECK = """
import importlib, os, torch
asked = []
for name in ("is_available", "device_count", "init", "_lazy_init", "current_device", "get_device_properties"):
    setattr(torch.cuda, name, lambda *args, name=name, **settings: asked.append(name))
from bigbatch.cli.workers import IMPORTS
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
