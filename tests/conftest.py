"""What every test shares: one thread per worker, a cache of its own, and no state of an earlier test."""

import pytest
import torch
from hypothesis import HealthCheck, settings

# On a shared machine time says nothing about a test; a failure prints the seed to repeat it with.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.fixture(scope="session", autouse=True)
def _quiet_machine(tmp_path_factory):
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setenv("BIGBATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.delenv("BIGBATCH_DATA", raising=False)
    patch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))
    yield
    patch.undo()
