"""One rank of runs of the trainer, one after the other: a JSON file with a task, a recipe, a folder and options of `fit` for each."""

import contextlib
import itertools
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tests.distributed.ranks import leave

from bigbatch import Recipe, fit
from bigbatch.core.checks import Interrupted
from bigbatch.train.state.agreed_flags import AgreedFlags


@contextlib.contextmanager
def stopped_after(updates):
    """Asked to stop, as by Ctrl-C, once so many updates are made."""
    if updates is None:
        yield
        return
    poll, count = AgreedFlags.poll, itertools.count(1)

    def ask(self, *, interrupted, save):
        return poll(self, interrupted=next(count) >= updates, save=save)

    AgreedFlags.poll = ask
    try:
        with contextlib.suppress(Interrupted):
            yield
    finally:
        AgreedFlags.poll = poll


def main():
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=rank, world_size=world)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        options = job.get("options", {})
        with stopped_after(options.pop("stop_after", None)):
            fit(job["task"], Recipe.from_toml(job["recipe"]), out=job["out"], quiet=True, tensorboard=False, **options)
    leave()


if __name__ == "__main__":
    main()
