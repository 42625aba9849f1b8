import subprocess
import sys
from pathlib import Path


def test_what_torch_asks_of_its_own_optimizers_ours_do():
    """In a process of its own: the import of torch's inputs changes switches of torch for good."""
    file = Path(__file__).with_name("torch_machinery.py")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore::ImportWarning",
        str(file),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
