"""What every test shares: one thread per worker, a cache of its own, and no state of an earlier test; and how to repeat tests."""

import os

THREADS = os.environ.get("BIGBATCH_TEST_THREADS", "1")
if THREADS == "1":  # before numpy is imported, and for what tests start: threads that wait for one another make a busy machine crawl
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what is compared is the processor's; tests/gpu has its own call, `make gpu`

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# On a shared machine time says nothing about a test; a failure prints the seed to repeat it with.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


def pytest_ignore_collect(collection_path):
    """Of these folders only files of tests: to look for doctests means to import, and some helpers set up a device, or change a class.

    Files of kernels' tests are run by themselves, see kernel_files.py.
    """
    is_helper = collection_path.suffix == ".py" and not collection_path.name.startswith(("test_", "__init__", "conftest"))
    return True if is_helper and "TRITON_INTERPRET" not in os.environ else None


@pytest.fixture(scope="session", autouse=True)
def _quiet_machine(tmp_path_factory):
    if THREADS != "default":
        torch.set_num_threads(int(THREADS))
    patch = pytest.MonkeyPatch()
    patch.setenv("BIGBATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.delenv("BIGBATCH_DATA", raising=False)
    patch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _no_command_of_before():
    """A command that a test calls in this process says for those that follow how to go on, and flushes denormal numbers."""
    yield
    os.environ.pop("BIGBATCH_GOES_ON", None)
    torch.set_flush_denormal(False)


def pytest_addoption(parser):
    parser.addoption("--repeat", type=int, default=1, metavar="N", help="run every test N times")
    parser.addoption("--renew-killers", action="store_true", help="run mutants against whole files of tests: contract/test_mutations.py")


def pytest_generate_tests(metafunc):
    times = metafunc.config.getoption("--repeat")
    if times > 1:
        metafunc.fixturenames.append("repetition")
        metafunc.parametrize("repetition", range(times), indirect=True, ids="time {}".format)


@pytest.fixture
def repetition(request):
    """Which time it is, with --repeat."""
    return request.param
