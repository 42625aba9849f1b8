"""The GPU part of the tests: `pytest -m gpu`, in any environment that has pytest; a test's failure is a row with its error line."""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

from benchmarks.gpu.part import Part

ROOT = Path(__file__).resolve().parents[2]


def main():
    part = Part("suite")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        settings = ["-c", str(ROOT / "tests/gpu/pytest.ini"), "--rootdir", str(ROOT), "--confcutdir", str(ROOT / "tests/gpu")]
        plain = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:timeout", "--junitxml", str(report)]
        env = os.environ | {"BIGBATCH_GPU_TESTS_ON": part.device.type, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        command = [sys.executable, "-m", "pytest", *settings, *plain, str(ROOT / "tests/gpu")]
        process = subprocess.Popen(command, cwd=ROOT, env=env)
        try:
            code = process.wait(timeout=max(part.left() - 5, 1))
        except subprocess.TimeoutExpired:
            process.terminate()  # pytest writes its report at the end only: tests/gpu/conftest.py does on this signal too
            code = process.wait(timeout=20)
        if not report.exists():
            raise SystemExit(f"pytest ended with {code} and wrote no report")
        cases = list(ET.parse(report).getroot().iter("testcase"))
    counts = dict.fromkeys(("passed", "skipped", "failed"), 0)
    for case in cases:
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        kind = "failed" if bad is not None else "skipped" if case.find("skipped") is not None else "passed"
        counts[kind] += 1
        if bad is not None:
            line = next((line for line in (bad.get("message") or bad.text or "").splitlines() if line.strip()), "")
            part.row(f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}", None, error=line.strip()[:200])
    part.row("tests passed", counts["passed"], f"of {len(cases)}, {counts['skipped']} skipped", goal=(">=", 1))
    part.row("tests failed", counts["failed"], goal=("<=", 0))
    if code in (0, 1):
        part.finish()


if __name__ == "__main__":
    main()
