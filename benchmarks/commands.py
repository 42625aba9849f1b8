"""How long do commands take that compute nothing? Medians over runs, each in a process of its own. Writes commands.json beside this script.

The goals: `papers` in less than 0.5 s, `report` of three arms in less than 2 s.

python benchmarks/commands.py
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bigbatch import Recipe, scale
from bigbatch.train.state.record import environment

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.startup import medians, seconds

RUNS = 7
COMMANDS = (["--version"], ["papers"], ["papers", "legw"], ["tasks"], ["plan", "digits/mlp", "--global-batch", "64"])
OF_A_STUDY = ("runs", "report")


def main():
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.named("digits/mlp").replace({"budget.epochs": 5, "batch.micro_batch": 32})
        scale("digits/mlp", to=128, recipe=recipe, seeds=3, max_seeds=3, out=folder, quiet=True)
        commands = [*COMMANDS, *([name, folder] for name in OF_A_STUDY)]
        times = {" ".join(c).replace(folder, "STUDY"): [] for c in commands}
        for _ in range(RUNS):
            for name, command in zip(times, commands, strict=True):
                times[name].append(seconds([sys.executable, "-m", "bigbatch", *command]))
    result = {"runs": RUNS, "commands": {name: medians(each) for name, each in times.items()}, "load": round(os.getloadavg()[0], 1)}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    result |= {"environment": environment(), "commit": commit}
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
