import os
from pathlib import Path

from tests.forks import PYTEST, Program
from tests.limits import LIMIT_S


def test_what_torch_asks_of_its_own_optimizers_ours_do():
    """In a process of its own: the import of torch's inputs changes switches of torch for good."""
    file = Path(__file__).with_name("torch_machinery.py")
    program = Program([*PYTEST, "-W", "ignore::ImportWarning", file], environment=os.environ, bare=True)
    try:
        assert program.wait(LIMIT_S) == 0, program.printed()[-4000:] + program.said()[-2000:]
    finally:
        program.kill()
    assert " passed" in program.printed()
