"""What does measuring the noise scale add to an update? Ratio of medians over single updates in turn.

    python benchmarks/noise_overhead.py [--updates 200]

The same updates of one model (two would differ by where they lie in memory), by turns without a NoiseScaleMonitor, again without, with
one, and with one of norm layers alone where the model has them: accumulation of four micro-batches of 128 on one process, and of two of
128 on each of two processes under DistributedDataParallel (gloo). Values are read four times a second, as the trainer does: a reading is
timed by itself and its share is added. The second arm without a monitor shows the noise of the machine. Writes noise_overhead.json beside
this script; noise_of_language_models.py measures a GPT so.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from bigbatch import Recipe
from bigbatch.comm.all_reduce import AllReduce
from bigbatch.comm.ranks import Ranks
from bigbatch.core.checks import UserError
from bigbatch.layers import convert_batch_norm
from bigbatch.noise.monitor import NoiseScaleMonitor
from bigbatch.noise.norm_layers import norm_parameters
from bigbatch.tasks import load_task
from bigbatch.train.state.record import environment
from bigbatch.train.update.gradient_accumulation import accumulate_gradients

TASKS, PIECE = ("fashion_mnist/cnn", "fashion_mnist/resnet8"), 128
READ_EVERY_S = 0.25
ARMS = ("without", "without, again", "with", "norms alone")


class Loop:
    """A model, its optimizer, and a monitor that comes and goes."""

    def __init__(self, name, ranks, piece):
        self.task, recipe, self.ranks = load_task(name), Recipe.named(name), ranks
        torch.manual_seed(0)
        self.model = self.task.model(**recipe.model).train()
        convert_batch_norm(self.model, piece)
        try:
            self.arms, self.norms = ARMS, norm_parameters(self.model)
        except UserError:
            self.arms, self.norms = ARMS[:3], []
        self.comm = AllReduce(self.model, ranks)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.monitor = None
        inputs, targets = self.task.splits().train.tensors
        passes = 4 // ranks.world_size
        self.pieces = [(inputs[i * piece : (i + 1) * piece], targets[i * piece : (i + 1) * piece]) for i in range(passes)]
        self.settings = {"precision": recipe.precision, "device": torch.device("cpu"), "sync_context": self.comm.sync_context}
        self.divisor = self.comm.divisor(4 * piece, passes * piece)

    def after_backward(self, num_samples, divisor):
        """After a backward pass."""
        self.monitor.micro_batch(num_samples, divisor=divisor)

    def seconds(self, arm, clock):
        """Seconds of an update, and of a reading."""
        measured, only = not arm.startswith("without"), self.norms if arm == "norms alone" else None
        monitor = self.monitor = NoiseScaleMonitor(self.model, only=only, population=55_000) if measured else None
        if self.ranks.world_size > 1:
            dist.barrier()
        began = clock()
        after_backward = self.after_backward if measured else None
        accumulate_gradients(
            self.comm.forward, self.task, self.pieces, divisor=self.divisor, after_backward=after_backward, **self.settings
        )
        if monitor:
            monitor.update()
        self.optimizer.step()
        self.optimizer.zero_grad()
        ended = clock()
        if monitor:
            monitor.flush()
            monitor.close()
        return ended - began, clock() - ended


def measure(name, ranks, updates, piece=PIECE, clock=time.perf_counter):
    loop = Loop(name, ranks, piece)
    arms, times = loop.arms, {arm: [] for arm in loop.arms}
    for number in range(-10, updates):
        turn = number % len(arms)
        for arm in arms[turn:] + arms[:turn]:
            seconds = loop.seconds(arm, clock)
            if number >= 0:
                times[arm].append(seconds)
    medians = {arm: statistics.median(update for update, _ in values) for arm, values in times.items()}
    for arm in arms[2:]:
        medians[arm] += statistics.median(reading for _, reading in times[arm]) * min(medians[arm] / READ_EVERY_S, 1)
    ratio = {arm: round(medians[arm] / medians["without"], 4) for arm in arms[1:]}
    return {"median_s": {arm: round(value, 6) for arm, value in medians.items()}, "ratio": ratio, "updates": updates}


def rank_main(name, updates):
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{os.environ['PORT']}", rank=rank, world_size=world)
    result = measure(name, Ranks(rank, world), updates)
    if rank == 0:
        print(json.dumps(result), flush=True)
    dist.barrier()
    time.sleep(0.2)
    os._exit(0)


def two_ranks(name, updates):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = {**os.environ, "WORLD_SIZE": "2", "PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, __file__, "--rank-of", name, "--updates", str(updates)]
    ranks = [subprocess.Popen(command, env={**environ, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True) for rank in range(2)]
    outputs = [rank.communicate(timeout=1200)[0] for rank in ranks]
    return json.loads(outputs[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--rank-of")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.rank_of:
        rank_main(arguments.rank_of, arguments.updates)
    results = {}
    for name in TASKS:
        results[name] = {
            "1 process x 4 micro-batches": measure(name, Ranks(), arguments.updates),
            "2 processes x 2 micro-batches": two_ranks(name, arguments.updates),
        }
        for case, result in results[name].items():
            print(name, case, result["ratio"], result["median_s"], flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({"results": results, "commit": commit, "environment": environment()}, indent=2) + "\n")
