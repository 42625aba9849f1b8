"""What the tests of the GPU share. They run where there is one, and on the CPU where `BIGBATCH_GPU_TESTS_ON=cpu` asks for a dry run.

Nothing of tests/conftest.py is needed here: `make gpu` runs them with torch and pytest alone.
"""

import os
import signal

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA begins: equal bits from matrix products

import pytest
import torch

ON = os.environ.get("BIGBATCH_GPU_TESTS_ON", "cuda")


def pytest_configure(config):
    if ON == "cuda" and "BIGBATCH_GPU_TESTS_ON" in os.environ:
        signal.signal(signal.SIGTERM, lambda *_: pytest.exit("no time was left", returncode=1))  # the report is still written


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
    yield
    cudnn.allow_tf32, products.allow_tf32, cudnn.deterministic, cudnn.benchmark = before
