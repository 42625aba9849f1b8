"""What the tests of the GPU share. `make gpu` runs them where there is one, and on the CPU in a dry run.

Nothing of tests/conftest.py is used there, which hides GPUs from all other tests: torch and pytest are enough.
"""

import json
import os
import signal

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA begins: equal bits from matrix products

import pytest
import torch

ON = os.environ.get("GPU_TESTS_ON", "cuda")


TELL = os.environ.get("GPU_TESTS_TELL")
LIMIT_S = 90
"""For a test of `make gpu`, which has no plugin for it."""


def pytest_runtest_logreport(report):
    """Tell `make gpu` of each test as it ends."""
    if TELL and "PYTEST_XDIST_WORKER" not in os.environ and (report.when == "call" or report.outcome != "passed"):
        crash = getattr(report.longrepr, "reprcrash", None)
        lines = [line for line in (crash.message if crash else str(report.longrepr or "")).splitlines() if line.strip()]
        error = (lines or [""])[0 if crash else -1].strip()[:200]
        with open(TELL, "a") as file:
            file.write(json.dumps({"name": report.nodeid.rpartition("/")[2], "outcome": report.outcome, "error": error}) + "\n")


def _too_long(*_):
    raise TimeoutError(f"the test took longer than {LIMIT_S} s")


@pytest.fixture
def device():
    """A GPU, or the CPU in a dry run."""
    if ON == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return torch.device(ON)


@pytest.fixture
def cuda(device):
    """A GPU and nothing else."""
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    return device


@pytest.fixture(autouse=True)
def _exact(tmp_path, monkeypatch):
    """Float32 without TensorFloat-32, kernels that repeat themselves, and a cache of the test's own."""
    monkeypatch.setenv("BIGBATCH_CACHE", str(tmp_path / "cache"))
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, products.allow_tf32, cudnn.deterministic, cudnn.benchmark
    cudnn.allow_tf32, products.allow_tf32, cudnn.deterministic, cudnn.benchmark = False, False, True, False
    torch.manual_seed(0)
    if TELL:
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(LIMIT_S)
    yield
    if TELL:
        signal.alarm(0)
    cudnn.allow_tf32, products.allow_tf32, cudnn.deterministic, cudnn.benchmark = before
