"""Does any damaged file end in "this is a bug", in a traceback, or in a loss that nobody was told of?

    python benchmarks/fuzz_files.py [--number 2000] [--start 0]

Records, results, recipes, comparisons, checkpoints and the lines of studies are damaged at random (bits, cuts, zeros, doubled and dropped
parts, other types, numbers of 5,000 digits, 5,000 levels of nesting; checkpoints also from the inside, with right checksums) and read by
what reads them: resuming to the end, the report, the result of a finished run. See tests/fuzz_files.py. Writes fuzz_files.json beside
this script: what came of each kind, and what went wrong, with the kind and number to repeat it by.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from bigbatch.train.state.record import environment

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fuzz_files import Folder, count, shares

PATH = Path(__file__).with_suffix(".json")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=2000)
    parser.add_argument("--start", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    began, kinds = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Folder(Path(temporary) / "runs")
        for kind, number in shares(asked.number).items():
            counts, wrong = count(folder, kind, number, Path(temporary) / "run", start=asked.start)
            kinds[kind] = {"tried": number, **dict(sorted(counts.items())), "wrong": wrong}
            print(kind, kinds[kind])
    found = {
        "tried": sum(each["tried"] for each in kinds.values()),
        "wrong": sum(len(each["wrong"]) for each in kinds.values()),
        "kinds": kinds,
        "start": asked.start,
        "seconds": round(time.monotonic() - began),
        "environment": environment(),
    }
    PATH.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(bool(found["wrong"]))


if __name__ == "__main__":
    main()
