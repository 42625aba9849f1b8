"""How long do `bigbatch --help` and imports take? Medians over runs, each in a process of its own. Writes startup.json beside this script.

Imports are timed beside torch's own, which is most of theirs, and in turn, so that a busy machine slows them alike.

python benchmarks/startup.py
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bigbatch.train.state.record import environment

RUNS, IMPORT_RUNS = 21, 5
IMPORTS = ("torch", "torch.distributed.tensor", "bigbatch.optim", "bigbatch.noise", "bigbatch.train")


def seconds(command):
    """User and wall time of a process."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime, time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    wall = time.perf_counter() - began
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before, wall


def medians(times):
    user, wall = zip(*times, strict=True)
    return {"user_s": round(statistics.median(user), 4), "wall_s": round(statistics.median(wall), 4), "slowest_user_s": round(max(user), 4)}


def imports():
    times = {name: [] for name in IMPORTS}
    for _ in range(IMPORT_RUNS):
        for name in IMPORTS:
            times[name].append(seconds([sys.executable, "-c", f"import {name}"]))
    return {name: medians(each) for name, each in times.items()}


def main():
    program = Path(sys.executable).with_name("bigbatch")
    result = {"runs": RUNS, **medians([seconds([program, "--help"]) for _ in range(RUNS)])}
    result |= {"import_runs": IMPORT_RUNS, "imports": imports(), "load": round(os.getloadavg()[0], 1)}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    result |= {"environment": environment(), "commit": commit}
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
