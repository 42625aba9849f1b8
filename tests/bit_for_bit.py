"""The tests of equal bits, many times, in each of the environments in which the last bits might differ.

    python tests/bit_for_bit.py [--times 20] [--jobs 2] [--minutes 300] [--resume]        # or: make test-bits

They are those marked `bit_for_bit`. Every environment is a process of pytest that runs each test `--times` times; those also marked `slow`
(several processes, or runs of a minute) it runs `--slow-times` times, in a few environments. What the processor lacks is left out and said.
Prints a table, writes it with every test's counts to tests/bit_for_bit.json after each row, and exits with 1 if one run was red or
none was made; `--resume` leaves out what the file has as green on this machine; each row says of which commit it is.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CLEARED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "MKL_CBWR", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "BIGBATCH_TEST_THREADS")
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
"""More threads than free cores would turn in circles while they wait for one another; it rounds nothing."""


class Environment(NamedTuple):
    """Settings under which the tests run."""

    name: str
    settings: dict[str, str]
    busy_loops: int = 0  # that run beside them
    needs: str = ""  # a flag of the processor
    slow_too: bool = False


def threads(number):
    return Environment(f"{number} threads", {"OMP_NUM_THREADS": str(number), "BIGBATCH_TEST_THREADS": str(number)}, slow_too=number == 2)


AVX512 = "avx512f"
ENVIRONMENTS = [
    Environment("default", {}, slow_too=True),
    *map(threads, (1, 2, 4)),
    Environment("MKL_CBWR=AVX2,STRICT", {"MKL_CBWR": "AVX2,STRICT"}, needs="avx2"),
    Environment("MKL_CBWR=COMPATIBLE", {"MKL_CBWR": "COMPATIBLE"}),
    Environment("MKL_CBWR=AVX512", {"MKL_CBWR": "AVX512"}, needs=AVX512),
    Environment("ATEN_CPU_CAPABILITY=default", {"ATEN_CPU_CAPABILITY": "default"}),
    Environment("ATEN_CPU_CAPABILITY=avx2", {"ATEN_CPU_CAPABILITY": "avx2"}, needs="avx2"),
    Environment("ATEN_CPU_CAPABILITY=avx512", {"ATEN_CPU_CAPABILITY": "avx512"}, needs=AVX512),
    Environment("ONEDNN_MAX_CPU_ISA=AVX2", {"ONEDNN_MAX_CPU_ISA": "AVX2"}, needs="avx2"),
    Environment("ONEDNN_MAX_CPU_ISA=AVX512_CORE", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, needs=AVX512),
    Environment("two busy loops", {}, busy_loops=2, slow_too=True),
]


def main():
    asked = arguments()
    flags, end = processor_flags(), time.monotonic() + 60 * asked.minutes
    chosen = [e for e in ENVIRONMENTS if not asked.only or any(word in e.name for word in asked.only)]
    able = [e for e in chosen if not e.needs or e.needs in flags]
    wanted = [(e, "quick") for e in able if asked.times] + [(e, "slow") for e in able if e.slow_too and asked.slow_times]
    about = {"machine": machine(), "times": asked.times, "slow_times": asked.slow_times}
    left_out = [{"environment": e.name, "left_out": f"this processor has no {e.needs}"} for e in chosen if e not in able]
    outcomes = green_before(asked.json, about) if asked.resume else []
    done = {(row["environment"], row["kind"]) for row in outcomes}
    with ThreadPoolExecutor(asked.jobs) as pool:
        for one in as_completed([pool.submit(outcome, e, kind, asked, end) for e, kind in wanted if (e.name, kind) not in done]):
            outcomes.append(one.result())
            write(asked.json, about, outcomes + left_out)
    rows = [*outcomes, *left_out]
    print(f"\n{'environment':32}{'kind':7}{'tests':>7}{'runs':>8}{'red':>6}{'seconds':>9}")
    for row in rows:
        counts = (
            f"{row['kind']:7}{row['tests']:7,}{row['runs']:8,}{row['red']:6,}{row['seconds']:9,.0f}"
            if "runs" in row
            else f"  {row['left_out']}"
        )
        print(f"{row['environment']:32}{counts}{'  ' + row['error'] if row.get('error') else ''}")
    for row in outcomes:
        for name, counts in row["by_test"].items():
            if counts["red"]:
                print(f"red: {row['environment']}: {name}: {counts['red']} of {counts['runs']}")
    return int(not outcomes or any(row["red"] or row["error"] or not row["runs"] for row in outcomes))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20, help="runs of each test in each environment")
    parser.add_argument("--slow-times", type=int, default=1, help="runs of each slow test, in the environments that have them")
    parser.add_argument("--jobs", type=int, default=2, help="environments at once")
    parser.add_argument("--minutes", type=float, default=300.0, help="stop what is not done by then, and count it as an error")
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="environments whose name has one of these words")
    parser.add_argument("--tests", nargs="*", default=["tests"], help="files or folders to look in")
    parser.add_argument("--resume", action="store_true", help="environments that the JSON file has as green are not run again")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args()


def green_before(path, about):
    """The rows of an earlier call, of this machine and with as many runs, whose every run was green."""
    if not path.exists():
        return []
    before = json.loads(path.read_text())
    same = all(before.get(name) == about[name] for name in about)
    return [row for row in before["rows"] if same and row.get("runs") and not row["red"] and not row["error"]]


def write(path, about, rows):
    path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


def outcome(environment, kind, asked, end):
    """The row of an environment and a kind of tests, "quick" or "slow"."""
    begin, by_test, row = time.monotonic(), {}, {"environment": environment.name, "kind": kind, **when()}
    marked, times = ("bit_for_bit and slow", asked.slow_times) if kind == "slow" else ("bit_for_bit and not slow", asked.times)
    with ExitStack() as stack:
        for _ in range(environment.busy_loops):
            stack.enter_context(busy_loop())
        error = run_pytest(environment, marked, times, asked.tests, end, by_test)
    counts = {name: sum(test[name] for test in by_test.values()) for name in ("runs", "red")}
    row |= {"tests": len(by_test), **counts, "seconds": round(time.monotonic() - begin, 1), "error": error, "by_test": by_test}
    print(f"{environment.name}, {kind}: {row['runs']:,} runs, {row['red']:,} red, {row['seconds']:,.0f} s", flush=True)
    return row


def run_pytest(environment, marked, times, tests, end, by_test):
    """Adds runs and reds of every test to `by_test`; returns what else went wrong."""
    kept = {name: value for name, value in os.environ.items() if name not in CLEARED}
    settings = {**kept, **PASSIVE, "BIGBATCH_TEST_THREADS": "default", **environment.settings}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *tests, "-q", "-n", "0", "-m", marked, f"--repeat={times}", f"--junitxml={report}"]
        command += ["-p", "no:cacheprovider", f"--basetemp={folder}/tmp", "-o", "tmp_path_retention_policy=none"]
        left_s = max(1.0, end - time.monotonic())
        try:
            done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=left_s, check=False)
        except subprocess.TimeoutExpired:
            return "out of time"
        if done.returncode == 5:  # no test of this kind among those asked for
            return ""
        if done.returncode not in (0, 1) or not report.exists():
            return f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-500:]}"
        count(report, by_test)
        if done.returncode == 1:
            print(re.sub(r"(?s)=+ slowest \d+ durations.*?(?==+ short test summary)", "", done.stdout)[-6000:], flush=True)
    return ""


def count(report, by_test):
    for case in ET.parse(report).iter("testcase"):
        if case.find("skipped") is None:
            name = f"{case.get('classname')}::{re.sub(r'time [0-9]+-|-?time [0-9]+', '', case.get('name')).replace('[]', '')}"
            counts = by_test.setdefault(name, {"runs": 0, "red": 0})
            counts["runs"] += 1
            counts["red"] += case.find("failure") is not None or case.find("error") is not None


@contextmanager
def busy_loop():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def processor_flags():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def machine():
    from bigbatch.core.hardware.arithmetic import arithmetic

    return {"cores": os.cpu_count(), **arithmetic()}


def when():
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return {"date": datetime.now(UTC).date().isoformat(), "commit": commit}


if __name__ == "__main__":
    sys.exit(main())
