"""Run cases on the simulated device in a process of their own, as they are or with a reading of the device planted."""

import functools
import importlib
import multiprocessing
import sys
import traceback
from contextlib import contextmanager

from tests.contract.mutant import SLOW
from tests.limits import LIMIT_S

OURS = ("bigbatch", "tests.accelerator")
FAMILIES = ("optimizers", "layers", "measurements", "trainer")


def run_family(family, *, planted=False):
    """What each case of a family waited for.

    Args:
        family: One of `FAMILIES`.
        planted: Run, in place of the cases, those of its `PLANTS`.

    Returns:
        Name of a case to its waits, or to the traceback of what it raised, as text; plants by case, module and function.
    """
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(SLOW)
    ours, theirs = forks.Pipe(duplex=False)
    process = forks.Process(target=_run, args=(family, planted, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(LIMIT_S):
            raise AssertionError(f"{family}: took longer than {LIMIT_S} s")
        return ours.recv()
    except EOFError:
        process.join(10)
        raise AssertionError(f"{family}: its process ended with {process.exitcode}") from None
    finally:
        process.kill()
        process.join()


def _run(family, planted, results):
    import torch

    torch.set_num_threads(1)
    from tests.accelerator import simulated  # before anything else may look for devices

    module = importlib.import_module(f"tests.accelerator.{family}")
    found = {}
    if planted:
        for case, where, target in module.PLANTS:
            with _planted(f"bigbatch.{where}", target):
                found[case, where, target] = _waits(simulated, module.CASES[case])
    else:
        for name, case in module.CASES.items():
            found[name] = _waits(simulated, case)
    results.send(found)
    results.close()


def _waits(simulated, case):
    simulated.Log.waits.clear()
    try:
        case()
    except BaseException:
        return traceback.format_exc()
    return [tuple(wait) for wait in dict.fromkeys(simulated.Log.waits)]


@contextmanager
def _planted(module, target):
    """Have a function read a value from the device before it does what it does."""
    from tests.accelerator.simulated import DEVICE
    from torch import ones

    something = ones(()).to(DEVICE)
    *owners, name = target.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original = owner.__dict__[name]

    @functools.wraps(original)
    def reading(*args, **kwargs):
        something.item()
        return original(*args, **kwargs)

    homes = [owner] if owners else [m for n, m in list(sys.modules.items()) if n.startswith(OURS) and m.__dict__.get(name) is original]
    for home in homes:
        setattr(home, name, reading)
    try:
        yield
    finally:
        for home in homes:
            setattr(home, name, original)
