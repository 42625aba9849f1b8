"""Does a step wait for the GPU unasked? The cases of tests/accelerator under torch.cuda.set_sync_debug_mode("error")."""

import importlib
import os
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from benchmarks.gpu.part import Part

FAMILIES = ("optimizers", "layers", "measurements", "trainer")
SIDE_BY_SIDE = 4


def where(error):
    """The nearest line of the package in a traceback, and what torch said."""
    frames = traceback.extract_tb(error.__traceback__)
    inner = [frame for frame in frames if "bigbatch" in Path(frame.filename).parts] or frames
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"{Path(inner[-1].filename).name}:{inner[-1].lineno} {inner[-1].name}: {text}"[:200]


def cases(part):
    """Family and name of each."""
    found = [(family, name) for family in FAMILIES for name in importlib.import_module(f"tests.accelerator.{family}").CASES]
    return found[:: 6 if part.quick else 1]


def waits(family, name):
    """In a process of its own: where a case waits, or fails; None if it does not."""
    warnings.simplefilter("ignore")  # the mode is called a prototype at every change
    from tests.accelerator.place import set_phase

    try:
        importlib.import_module(f"tests.accelerator.{family}").CASES[name]()
    except Exception as error:
        set_phase(None)
        return where(error)
    return None


def main():
    part = Part("waits")
    os.environ["WAITS_ON"] = part.device.type
    wanted = cases(part)
    done = next((row["cases"] for row in part.rows if "cases" in row), [])
    waiting = [row for row in part.rows if row.get("wait")]
    pool = ProcessPoolExecutor(min(SIDE_BY_SIDE, os.cpu_count() or 1), mp_context=get_context("spawn"))
    running = {pool.submit(waits, *case): f"{case[0]}: {case[1]}" for case in wanted if f"{case[0]}: {case[1]}" not in done}
    try:
        for future in as_completed(running, timeout=max(part.left() - 3, 1)):
            case, found = running[future], future.result()
            if found is not None:
                waiting.append({"what": case, "value": found, "unit": "", "goal": None, "wait": True})
                part.row(**waiting[-1])
            done = [*done, case]
            part.row("cases that wait, or fail", len(waiting), f"of {len(done)}", goal=("<=", 0), cases=done)
    except TimeoutError:
        pool.shutdown(wait=False, cancel_futures=True)
        raise SystemExit(f"{len(done)} of {len(wanted)} cases in {part.seconds:.0f} s; start again to go on") from None
    pool.shutdown()
    part.finish()


if __name__ == "__main__":
    main()
