"""How long does `bigbatch --help` take? Median user time and wall time over runs. Writes startup.json beside this script.

python benchmarks/startup.py
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bigbatch.train.state.record import environment

RUNS = 21
user, wall = [], []
for _ in range(RUNS):
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime, time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("bigbatch"), "--help"], check=True, capture_output=True)
    wall.append(time.perf_counter() - began)
    user.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
result = {"runs": RUNS, "user_s": round(statistics.median(user), 4), "wall_s": round(statistics.median(wall), 4)}
commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
result |= {"slowest_user_s": round(max(user), 4), "environment": environment(), "commit": commit}
Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
print(result)
