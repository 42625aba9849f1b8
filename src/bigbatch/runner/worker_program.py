"""What `WorkersRunner` starts: forks the workers of one run of a task, and ends with their exit code.

    python -m bigbatch.runner.worker_program FOLDER        # reads FOLDER/request.pickle; writes FOLDER/answer.pickle

Nothing here imports torch before the launcher has set up the environment of the workers.
"""

import importlib
import os
import pickle
import sys
from functools import partial
from pathlib import Path
from typing import Any

from bigbatch.comm.launch.launcher import Workers, launch
from bigbatch.core.checks import Diverged, Elsewhere, Interrupted, LostWorkers, UserError
from bigbatch.core.storage.saved import Saved
from bigbatch.core.storage.writing import write_atomically

REQUEST, ANSWER = "request.pickle", "answer.pickle"
IMPORTS = ("bigbatch.train.trainer", "torch._dynamo")


def main(folder: Path) -> int:
    """Run the workers of the request in a folder."""
    number, out = pickle.loads((folder / "number.pickle").read_bytes())
    return launch(partial(work, folder), Workers(number, number), Saved(out), prepare=prepare)


def prepare() -> None:
    """Import what every worker needs, before they are forked."""
    for name in IMPORTS:
        importlib.import_module(name)


def work(folder: Path) -> None:
    """One worker's part of the run. The first leaves the answer: the result, or why there is none."""
    from bigbatch.train.trainer import fit

    task, recipe, settings = pickle.loads((folder / REQUEST).read_bytes())
    answer: Any
    try:
        answer, code = fit(task, recipe, **settings), 0
    except (UserError, Diverged, Interrupted, LostWorkers) as error:
        codes: dict[type[Exception], int] = {Diverged: 3, LostWorkers: 4, Interrupted: 130}
        answer, code = error, next((code for kind, code in codes.items() if isinstance(error, kind)), 2)
    if os.environ["RANK"] == "0" or (code == 2 and not isinstance(answer, Elsewhere)):
        write_atomically(folder / ANSWER, pickle.dumps(answer))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # gloo's threads may still want Python's lock


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
