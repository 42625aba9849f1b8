"""How long is a run held up when one of its workers dies?

    python benchmarks/recovery.py [--times 5]

digits/mlp with `--workers 2:3` and a checkpoint about every half second. After 200 updates worker 1 is killed with SIGKILL; `recovery_s` is
from then to the first update that comes after it in the record, which is written after an update and four times a second. The same for a
worker that is stopped with SIGSTOP and `BIGBATCH_TIMEOUT_S=5`: `silent_s` counts from the end of those 5 s. And `start_s`, from the command
to the first update. Median of five each. Writes recovery.json beside this script, which also holds what torch's elastic agents took, on the
same machine as busy with other work (`before`).
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bigbatch.train.state.record import environment

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.distributed.jobs import Job

PATH = Path(__file__).with_suffix(".json")
COMMAND = [
    "digits/mlp",
    "--set",
    "budget.epochs=400",
    "--set",
    "batch.micro_batch=16",
    "--save-every",
    "0.5",
    "--quiet",
    "--workers",
    "2:3",
]
TIMEOUT_S = 5.0


def last_update(job):
    return max((line["update"] for line in job.lines() if line["kind"] == "update"), default=0)


def attempt(number, folder):
    """Seconds to the first update, and from a signal to the first update after it."""
    began = time.monotonic()
    job = Job(folder / "run", *COMMAND, cwd=folder, BIGBATCH_TIMEOUT_S=f"{TIMEOUT_S:g}")
    job.wait_for_updates(1)
    start_s = time.monotonic() - began
    job.wait_for_updates(200)
    workers = job.workers()
    os.kill(workers[1], number)
    began = time.monotonic()
    job.wait_for(lambda: workers[0] not in job.workers() and workers[1] not in job.workers())  # that group is gone
    reached = last_update(job)
    job.wait_for(lambda: last_update(job) > reached)
    held_s = time.monotonic() - began
    job.process.send_signal(signal.SIGTERM)
    code, said = job.end()
    assert code == 130, said
    return start_s, held_s


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    found = {"start_s": [], "recovery_s": [], "silent_s": []}
    for _ in range(arguments.times):
        for name, number, waited_s in (("recovery_s", signal.SIGKILL, 0.0), ("silent_s", signal.SIGSTOP, TIMEOUT_S)):
            with tempfile.TemporaryDirectory() as folder:
                start_s, held_s = attempt(number, Path(folder))
            found["start_s"].append(round(start_s, 2))
            found[name].append(round(held_s - waited_s, 2))
            print(name, found[name][-1], "start_s", found["start_s"][-1], flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    medians = {f"median_{name}": round(statistics.median(values), 2) for name, values in found.items()}
    before = json.loads(PATH.read_text()).get("before") if PATH.exists() else None
    load = [round(value, 1) for value in os.getloadavg()]
    PATH.write_text(
        json.dumps({**medians, **found, "before": before, "load": load, "environment": environment(), "commit": commit}, indent=1) + "\n"
    )
    print(medians)


if __name__ == "__main__":
    main()
