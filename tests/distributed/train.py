"""One rank of runs of the trainer, one after the other: a JSON file with a task, a recipe, a folder and options of `fit` for each."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tests.distributed.ranks import leave

from bigbatch import Recipe, fit


def main():
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=rank, world_size=world)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        fit(job["task"], Recipe.from_toml(job["recipe"]), out=job["out"], quiet=True, tensorboard=False, **job.get("options", {}))
    leave()


if __name__ == "__main__":
    main()
