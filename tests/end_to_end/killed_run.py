"""Kill a run with SIGKILL at 20 random moments, half of them in the middle of writing a checkpoint; run as a program by its test.

    python killed_run.py FOLDER SEED

The parent imports torch once and forks a child per attempt, which resumes the run. Prints what happened as JSON.
"""

import json
import os
import random
import signal
import stat
import sys
import time
from pathlib import Path

import torch
from torch import nn

from bigbatch import Recipe, fit
from bigbatch.tasks.digits_mlp import DigitsMLP

KILLS = 20
RECIPE = Recipe.from_toml(
    """
    num_train_samples = 1297
    [optimizer]
    name = "adamw"
    lr = 3e-3
    weight_decay = 0.01
    [schedule.warmup]
    kind = "gradual"
    epochs = 1
    [schedule.decay]
    kind = "cosine"
    [batch]
    global_batch = 50
    ghost_batch = 25
    micro_batch = 25
    [budget]
    updates = 1500
    """
)


class Hard(DigitsMLP):
    """Everything that a resume can get wrong: dropout (random states), batch norm (buffers), Adam (moments, step count)."""

    name = "digits/hard"

    def model(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10))


def attempt(out, mid_write_after, save_every_s):
    """One attempt in a child process. With a number, dies half-way through writing that checkpoint."""
    torch.set_num_threads(1)
    if mid_write_after is not None:
        remaining = [mid_write_after]
        original = os.fsync

        def fsync(descriptor):
            remaining[0] -= 1
            if remaining[0] == 0:
                if stat.S_ISREG(os.fstat(descriptor).st_mode):  # the other half of the calls syncs the folder, after the rename
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            original(descriptor)

        os.fsync = fsync
    fit(Hard(), RECIPE, out=out, resume=(out / "last.pt").exists(), save_every_s=save_every_s, quiet=True, tensorboard=False)


def fork(out, mid_write_after=None, save_every_s=0):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            attempt(out, mid_write_after, save_every_s)
            code = 0
        finally:
            os._exit(code)
    return child


def stamp(out):
    """Changes with every checkpoint."""
    path = out / "last.pt"
    return path.stat().st_mtime_ns if path.exists() else None


def main(folder, seed):
    chance = random.Random(seed)
    broken, straight = folder / "broken", folder / "straight"
    killed = {"anywhere": 0, "mid-write": 0}
    updates = []
    for number in range(KILLS):
        if number % 2:
            child = fork(broken, mid_write_after=chance.randint(1, 30))
            kind = "mid-write"
        else:
            before = stamp(broken)
            child = fork(broken)
            kind = "anywhere"
            if number % 4 == 0:  # half of them in the updates, half wherever the start has come to
                deadline = time.monotonic() + 60
                while stamp(broken) == before and time.monotonic() < deadline:
                    time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.25))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed[kind] += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if (broken / "last.pt").exists():
            updates.append(torch.load(broken / "last.pt", weights_only=True)["progress"][0][1])
    codes = [os.waitpid(fork(out, save_every_s=1e9), 0)[1] for out in (broken, straight)]
    states = [torch.load(out / "last.pt", weights_only=True) for out in (broken, straight)]
    same = {
        part: all(torch.equal(a, b) for a, b in zip(tensors(states[0][part]), tensors(states[1][part]), strict=True))
        for part in ("model", "optimizer", "workers")
    }
    records = [(out / "record.jsonl").read_text().splitlines() for out in (broken, straight)]
    losses = [[json.loads(line)["loss"] for line in lines if '"kind": "update"' in line] for lines in records]
    print(json.dumps({"killed": killed, "updates": updates, "codes": codes, "same": same, "same_losses": losses[0] == losses[1]}))


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        return [t for key in tree for t in tensors(tree[key])]
    if isinstance(tree, list | tuple):
        return [t for item in tree for t in tensors(item)]
    return [torch.tensor(float(tree))] if isinstance(tree, int | float) else []


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
