"""A task whose workers hold still in the middle of writing a checkpoint, for as long as a file named `hold` is there.

BIGBATCH_TEST_HOLD names the folder of that file; each worker that holds leaves `held-RANK` there, with the number of updates that were
made when the checkpoint was begun. The first worker holds once its shards are on the disk, the others before they write any. A file named
`full` makes the disk of worker 1 full.
"""

import os
import resource
import time
from pathlib import Path

from bigbatch.comm import shard_files
from bigbatch.core.storage.writing import write_atomically
from bigbatch.tasks.digits_mlp import DigitsMLP


def rank():
    return int(os.environ.get("RANK", "0"))


def marked(name):
    return Path(os.environ["BIGBATCH_TEST_HOLD"], name)


def hold(updates):
    if marked("hold").exists():
        write_atomically(marked(f"held-{rank()}"), str(updates).encode())
        while marked("hold").exists():
            time.sleep(0.02)


class HeldWriter(shard_files.SafetensorsWriter):
    def __init__(self, folder, *arguments):
        super().__init__(folder, *arguments)
        self.updates = (folder.parents[1] / "record.jsonl").read_text().count('"kind": "update"')

    def write_data(self, plan, planner):
        if rank() > 0:
            hold(self.updates)
        if rank() == 1 and marked("full").exists():  # no file may grow any more: as on a full disk, the write fails half-way
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        done = super().write_data(plan, planner)
        if rank() == 0:
            hold(self.updates)
        return done


class Digits(DigitsMLP):
    name = "digits/held"

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        shard_files.SafetensorsWriter = HeldWriter  # in the run's own processes: whoever only imports this file changes nothing
