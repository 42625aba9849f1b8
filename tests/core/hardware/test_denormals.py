import subprocess
import sys

import pytest
import torch
from tests.limits import LIMIT_S

from bigbatch.core.hardware.arithmetic import arithmetic
from bigbatch.core.hardware.denormals import flush_denormals, flushes_denormals

needs_flushing = pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor can't flush denormal numbers")
HALVES = (
    "import torch; from bigbatch.core.hardware.denormals import flush_denormals\n{0}\ntorch.set_num_threads(2)\n"
    "print(int((torch.full((1_000_000,), 2.0**-126) * 0.5).count_nonzero()))"
)


@needs_flushing
@pytest.mark.parametrize(("ask", "left"), [("flush_denormals()", 0), ("", 1_000_000), ("flush_denormals(False)", 1_000_000)])
def test_all_threads_of_a_program_flush_that_asks_before_it_works(ask, left):
    command = [sys.executable, "-c", HALVES.format(ask)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert int(done.stdout) == left


@needs_flushing
def test_it_is_told(request):
    request.addfinalizer(lambda: flush_denormals(False))
    for flush, word in ((True, "flushed"), (False, "kept")):
        flush_denormals(flush)
        assert flushes_denormals() is flush
        assert arithmetic()["denormals"] == word
