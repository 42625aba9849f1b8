"""The GPU part of the tests: `pytest -m gpu`, side by side where there is xdist; a test's failure is a row with its error line."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu.part import Part

ROOT = Path(__file__).resolve().parents[2]
FILES = ("test_optimizers.py", "test_layers_and_measures.py", "test_fit.py")


def main():
    part = Part("suite")
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "tests.jsonl"  # a line a test, written as it ends: one that hangs takes no other with it
        settings = ["-c", str(ROOT / "tests/gpu/pytest.ini"), "--rootdir", str(ROOT), "--confcutdir", str(ROOT / "tests/gpu")]
        plain = ["-m", "gpu", "-q", "-p", "no:cacheprovider", *(str(ROOT / "tests/gpu" / name) for name in FILES)]
        if importlib.util.find_spec("xdist") is not None:
            plain += ["-p", "xdist", "-n", str(min(8, max(1, (os.cpu_count() or 1) // 2)))]
        own = {"GPU_TESTS_ON": part.device.type, "GPU_TESTS_TELL": str(told), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        process = subprocess.Popen([sys.executable, "-m", "pytest", *settings, *plain], cwd=ROOT, env=os.environ | own)
        try:
            code = process.wait(timeout=max(part.left() - 3, 1))
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        tests = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
    counts = {kind: sum(test["outcome"] == kind for test in tests) for kind in ("passed", "skipped", "failed")}
    for test in tests:
        if test["outcome"] == "failed":
            part.row(test["name"], None, error=test["error"])
    part.row("tests passed", counts["passed"], f"of {len(tests)}, {counts['skipped']} skipped", goal=(">=", 1))
    part.row("tests failed", counts["failed"], goal=("<=", 0))
    if code not in (0, 1):
        raise SystemExit(f"pytest ended with {code} after {len(tests)} tests")
    part.finish()


if __name__ == "__main__":
    main()
