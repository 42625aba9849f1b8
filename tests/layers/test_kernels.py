"""Ghost batch norm's kernels without a GPU: run by triton's interpreter, and compiled for two GPUs; each in a process of its own."""

from pathlib import Path

from tests.kernel_files import needs_triton, run_file

HERE = Path(__file__).parent
pytestmark = needs_triton


def test_by_the_interpreter(tmp_path):
    run_file(HERE / "kernels_interpreted.py", interpret=True, cache=tmp_path)


def test_by_the_compiler(tmp_path):
    run_file(HERE / "kernels_compiled.py", interpret=False, cache=tmp_path)
