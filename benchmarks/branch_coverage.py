"""How often does the interval of a critical batch by branches hold it? On a noisy quadratic whose critical batch is known.

    python benchmarks/branch_coverage.py

Fixed beforehand: 300 studies of each kind, branches as `bigbatch critical --branch` makes them (multiples 1, 4 and 16, and of two batches
alone with ten updates of the larger; one more of half the samples, rates with the root of the multiple, falling to zero), 95 %. Writes
branch_coverage.json beside this script.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from tests.noise.quadratic import Quadratic  # noqa: E402 this script may be run from anywhere

from bigbatch.noise.branches import local_critical_batch  # noqa: E402

REPEATS = 300

if __name__ == "__main__":
    quadratic, rows = Quadratic(), []
    for samples, multiples in ((512, (1, 4, 16)), (1024, (1, 4, 16)), (2560, (1, 4, 16)), (640, (1, 4)), (1280, (1, 8)), (2560, (1, 16))):
        for windows in (2, 3, 5, 8) if samples in (512, 1024) else (3,):
            studies = quadratic.studies(samples=samples, multiples=multiples, windows=windows, repeats=REPEATS, seed=samples + windows)
            found = [local_critical_batch(quadratic.start_loss, study).critical_batch for study in studies]
            ends = [(each.lower, each.upper) for each in found]
            factors = [math.sqrt(upper / lower) if lower > 0 else math.inf for lower, upper in ends]
            row = {"samples": samples, "windows": windows, "multiples": list(multiples), "studies": REPEATS}
            row["coverage"] = float(np.mean([lower <= quadratic.critical_batch <= upper for lower, upper in ends]))
            row["median_estimate"] = float(np.median([each.value for each in found]))
            row["median_factor_to_each_side"] = None if math.isinf(float(np.median(factors))) else float(np.median(factors))
            rows.append(row)
            print(row, flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    stored = {"commit": commit, "numpy": np.__version__, "critical_batch": quadratic.critical_batch, "confidence": 0.95, "rows": rows}
    (HERE / "branch_coverage.json").write_text(json.dumps(stored, indent=2) + "\n")
