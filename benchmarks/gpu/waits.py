"""Does a step wait for the GPU unasked? The cases of tests/accelerator under torch.cuda.set_sync_debug_mode("error")."""

import importlib
import os
import traceback
import warnings
from pathlib import Path

from benchmarks.gpu.part import Part

FAMILIES = ("optimizers", "layers", "measurements", "trainer")


def where(error):
    """The nearest line of the package in a traceback, and what torch said."""
    frames = traceback.extract_tb(error.__traceback__)
    inner = [frame for frame in frames if "bigbatch" in Path(frame.filename).parts] or frames
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"{Path(inner[-1].filename).name}:{inner[-1].lineno} {inner[-1].name}: {text}"[:200]


def main():
    part = Part("waits")
    os.environ["WAITS_ON"] = part.device.type
    warnings.simplefilter("ignore")  # the mode is called a prototype at every change
    from tests.accelerator.place import set_phase

    cases = [
        (family, name, case) for family in FAMILIES for name, case in importlib.import_module(f"tests.accelerator.{family}").CASES.items()
    ]
    cases = cases[:: 6 if part.quick else 1]
    done = next((row["cases"] for row in part.rows if "cases" in row), [])
    waiting = [row for row in part.rows if row.get("wait")]
    for family, name, case in cases:
        if f"{family}: {name}" in done or part.left() < 3:
            continue
        try:
            case()
        except Exception as error:
            set_phase(None)
            waiting.append({"what": f"{family}: {name}", "value": where(error), "unit": "", "goal": None, "wait": True})
            part.row(**waiting[-1])
        done = [*done, f"{family}: {name}"]
        part.row("cases that wait, or fail", len(waiting), f"of {len(done)}", goal=("<=", 0), cases=done)
    if len(done) >= len(cases):
        part.finish()


if __name__ == "__main__":
    main()
