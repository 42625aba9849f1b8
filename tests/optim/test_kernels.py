"""The kernels without a GPU: run by triton's interpreter, and compiled for two GPUs; each in a process of its own."""

from pathlib import Path

import pytest
from tests.kernel_files import needs_triton, run_file

HERE = Path(__file__).parent
METHODS = ["LARS", "LAMB", "AdamP", "SGDP"]
pytestmark = needs_triton


@pytest.mark.slow
@pytest.mark.parametrize("tests", [*METHODS, f"not ({' or '.join(METHODS)})"])
def test_by_the_interpreter(tests, tmp_path):
    run_file(HERE / "kernels_interpreted.py", "-k", f"{tests} and not wrong_line", interpret=True, cache=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_wrong_lines_show(method, tmp_path):
    run_file(HERE / "kernels_interpreted.py", "-k", f"{method} and wrong_line", interpret=True, cache=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_by_the_compiler(method, tmp_path):
    run_file(HERE / "kernels_compiled.py", "-k", method, interpret=False, cache=tmp_path)
