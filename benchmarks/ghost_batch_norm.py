"""What does ghost batch norm cost beside torch's batch norm, beside Composer's algorithm, and beside one reshape?

    python benchmarks/ghost_batch_norm.py [--rounds 30] [--threads 1 2]

Forward and backward of N = 1024, C = 64, 14 x 14 in ghost batches of 128, and of a ragged 1000, on the CPU. One process; the arms go round
in every round, starting with another each time; medians, and their ratio to torch.nn.BatchNorm2d. Composer's algorithm is made anew from
its description: chunks, one batch norm each, momentum over the number of chunks, one torch.cat. "one reshape" puts a group's
channels beside those of the others, so that one batch norm of K x C channels does all; "var_mean" is written with torch's own
reductions and left to autograd. The allocator is told to keep freed memory: otherwise each new output of 51 MB comes as fresh pages of the
system, whose clearing takes as long as batch norm and hides what is compared. Writes ghost_batch_norm.json beside this script.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from bigbatch.layers import GhostBatchNorm2d
from bigbatch.train.state.record import environment

HERE = Path(__file__).parent
CHANNELS, SIDE, GHOST = 64, 14, 128
SEED, WARM = 0, 3
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30), "MALLOC_TOP_PAD_": str(256 << 20)}  # glibc's


class Composer(nn.BatchNorm2d):
    """Chunks, one after the other, and one copy."""

    def forward(self, x):
        """Momentum over the number of chunks."""
        if len(x) < GHOST:
            raise ValueError(f"batch of {len(x)} is smaller than the ghost batch of {GHOST}")
        chunks = x.chunk(math.ceil(len(x) / GHOST))
        momentum = self.momentum / len(chunks)
        return torch.cat(
            [F.batch_norm(c, self.running_mean, self.running_var, self.weight, self.bias, self.training, momentum) for c in chunks]
        )


class OneReshape(nn.BatchNorm2d):
    """One batch norm of K x C channels."""

    def forward(self, x):
        """Copies there and back."""
        n, c, h, w = x.shape
        k = n // GHOST
        grouped = x.reshape(k, GHOST, c, h * w).transpose(0, 1).reshape(GHOST, k * c, h * w)
        out = F.batch_norm(grouped, None, None, self.weight.repeat(k), self.bias.repeat(k), training=True)
        return out.view(GHOST, k, c, h * w).transpose(0, 1).reshape(n, c, h, w)


class VarMean(nn.BatchNorm2d):
    """Reductions over samples and places of a group."""

    def forward(self, x):
        """No copy, but for what autograd keeps."""
        n, c, h, w = x.shape
        grouped = x.reshape(n // GHOST, GHOST, c, h * w)
        var, mean = torch.var_mean(grouped, (1, 3), correction=0, keepdim=True)
        scale = self.weight.view(1, 1, c, 1) * torch.rsqrt(var + self.eps)
        return torch.addcmul(self.bias.view(1, 1, c, 1) - mean * scale, grouped, scale).view(n, c, h, w)


def arms_for(num_samples):
    arms = {"torch": nn.BatchNorm2d(CHANNELS), "bigbatch": GhostBatchNorm2d(CHANNELS, ghost_batch=GHOST), "composer": Composer(CHANNELS)}
    if num_samples % GHOST == 0:
        arms |= {"one reshape": OneReshape(CHANNELS), "var_mean": VarMean(CHANNELS)}
    return arms


def one(layer, x, grad):
    x = x.detach().requires_grad_()
    layer.zero_grad()
    start = time.perf_counter()
    out = layer(x)
    middle = time.perf_counter()
    out.backward(grad)
    end = time.perf_counter()
    return end - start, middle - start, end - middle


def measure(num_samples, memory_format, threads, rounds):
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(SEED)
    x, grad = (
        torch.randn(num_samples, CHANNELS, SIDE, SIDE, generator=generator).to(memory_format=getattr(torch, memory_format))
        for _ in range(2)
    )
    arms = arms_for(num_samples)
    agree(arms, x)
    times, names = {arm: [] for arm in arms}, list(arms)
    for turn in range(WARM + rounds):
        for arm in names[turn % len(names) :] + names[: turn % len(names)]:
            taken = one(arms[arm], x, grad)
            if turn >= WARM:
                times[arm].append(taken)
    row = {"num_samples": num_samples, "memory_format": memory_format, "threads": threads, "median_ms": {}, "ratio_to_torch": {}}
    whole = {arm: statistics.median(total for total, *_ in taken) for arm, taken in times.items()}
    for arm, taken in times.items():
        total, forward, backward = (round(1e3 * statistics.median(ts), 3) for ts in zip(*taken, strict=True))
        row["median_ms"][arm] = {"both": total, "forward": forward, "backward": backward}
        row["ratio_to_torch"][arm] = round(whole[arm] / whole["torch"], 3)
    row["composer_over_bigbatch"] = round(whole["composer"] / whole["bigbatch"], 3)
    print(json.dumps(row), flush=True)
    return row


def agree(arms, x):
    """The arms compute the same where they group alike."""
    if len(x) % GHOST == 0:
        for arm, layer in arms.items():
            if arm != "torch":
                torch.testing.assert_close(layer(x), arms["bigbatch"](x), rtol=1e-4, atol=1e-4, msg=f"{arm} computes something else")


def evaluates_one_sample(layer):
    try:
        layer.eval()(torch.zeros(1, CHANNELS, SIDE, SIDE))
    except ValueError as error:
        return str(error)
    return True


if __name__ == "__main__":
    if not KEEP_MEMORY.items() <= os.environ.items():  # read once, when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--no-store", action="store_true")
    arguments = parser.parse_args()
    rows = [
        measure(n, memory_format, threads, arguments.rounds)
        for threads in arguments.threads
        for memory_format in ("contiguous_format", "channels_last")
        for n in (1024, 1000)
    ]
    one_sample = {arm: evaluates_one_sample(layer) for arm, layer in arms_for(0).items() if arm in ("torch", "bigbatch", "composer")}
    print(json.dumps({"evaluates_one_sample": one_sample}))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    if not arguments.no_store:
        facts = {"commit": commit, "environment": environment(), "seed": SEED, "rounds": arguments.rounds, "rows": rows}
        (HERE / "ghost_batch_norm.json").write_text(json.dumps(facts | {"evaluates_one_sample": one_sample}, indent=2) + "\n")
