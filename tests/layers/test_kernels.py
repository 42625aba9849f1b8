"""Ghost batch norm's kernels without a GPU: run by triton's interpreter, and compiled for two GPUs; each in a process of its own."""

from pathlib import Path

import pytest
from tests.kernel_files import needs_triton, run_file

HERE = Path(__file__).parent
pytestmark = needs_triton


def test_by_the_interpreter(tmp_path):
    run_file(HERE / "kernels_interpreted.py", interpret=True, cache=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
def test_by_the_compiler(tmp_path, capability):
    run_file(HERE / "kernels_compiled.py", "-k", capability, interpret=False, cache=tmp_path)
