"""Files of tests of Triton's kernels, each run in a process of its own: by triton's interpreter, or compiled for GPUs that aren't there."""

import importlib.util
import os
import sys
from contextlib import contextmanager

import pytest

from tests.forks import PYTEST, Program
from tests.limits import LIMIT_S

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None and not (sys.platform == "linux" and os.uname().machine == "x86_64"),
    reason="triton can't be installed here: its wheels are for Linux on x86_64",
)


def run_file(file, *more, interpret, cache):
    """Run one; `interpret` or compile."""
    environment = {**os.environ, "TRITON_INTERPRET": str(int(interpret)), "TRITON_CACHE_DIR": str(cache)}
    program = Program([*PYTEST, *more, file], environment=environment, bare=True)
    try:
        assert program.wait(LIMIT_S) == 0, program.printed()[-6000:] + program.said()[-2000:]
    finally:
        program.kill()
    assert " passed" in program.printed()
    assert "skipped" not in program.printed()


class _Driver:
    """Of a GPU that isn't there: it only says which it would be."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device=0):
        return 0


@contextmanager
def compiled_only(capability):
    """Launches within compile for a GPU of this compute capability, as 90, and go no further; yields (name, options, compiled) of each."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    compiled, run = [], JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        compiled.append((self.fn.__name__, kwargs, run(self, *args, grid=grid, warmup=True, **kwargs)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", compile_only)
        driver.set_active(_Driver(capability))
        yield compiled
