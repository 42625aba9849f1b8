"""How much communication hides behind the backward pass?

    python benchmarks/overlap.py [--rounds 7] [--rate-mbit 100]

Every host holds 12 linear layers of 700 x 700 (5.9 M parameters, 23.5 MB of gradients) and computes about as long as the all-reduce of
its gradients takes: the hardest case, since neither side has time to spare. Two kinds of layers:

    computing   real layers, with the batch that takes the time; 2 hosts, which also fight for the machine's processors
    sleeping    layers whose backward pass sleeps (without Python's lock) and computes next to nothing: overlap alone; 2 and 4 hosts

Arms, in rotating order, after a round that warms up and checks that all end in the same gradients:

    compute only         forward and backward, nothing sent
    communication only   one all-reduce of as many bytes
    default bucket       the class under test, which sends gradients while the backward pass goes on; a twelfth of them at a time
    bucket 1, 25 MB      the same with other buckets; 25 MB is the default of DistributedDataParallel
    no overlap           compute only, then one all-reduce

A step's time is the slowest host's. Reported: medians; their ratios to max(compute, communication) and to the sum; `hidden`, the part of
the shorter side that cost no time (0: none, 1: all); `met`, whether step <= 1.15 x max(compute, communication) + 5 ms. Gradients can only
be sent once the backward pass has begun, so no step is shorter than `least_s` = forward + max(backward, communication); where forward is
a third of compute, as in the computing layers, that is above the target. The last of b equal buckets can only leave after the last layer:
where both sides take the same time, sleeping layers cannot do better than 1 + 1/b. Writes overlap.json beside this script. Needs root:
see links.py.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from links import available, shaped_hosts
from torch import nn

from bigbatch.comm.all_reduce import AllReduce
from bigbatch.comm.ranks import Ranks
from bigbatch.train.state.record import environment

KINDS = [("computing", 2), ("sleeping", 2), ("sleeping", 4)]
LAYERS, WIDTH = 12, 700
NUM_PARAMETERS = LAYERS * (WIDTH + 1) * WIDTH
BUCKETS_MB = [None, 1, 25]
OVERLAPPED = ["default bucket", "bucket 1 MB", "bucket 25 MB"]
COMPUTE, COMMUNICATION, NO_OVERLAP = "compute only", "communication only", "no overlap"
ARMS = [COMPUTE, COMMUNICATION, *OVERLAPPED, NO_OVERLAP]


def under_test(model, bucket_mb):
    """The class under test, in one place. It needs `no_sync()` and gradients that are means over ranks after `backward()`."""
    return AllReduce(model, Ranks(dist.get_rank(), dist.get_world_size()), bucket_mb=bucket_mb).forward


class SleepInBackward(torch.autograd.Function):
    """Passes values and gradients on, the gradients late. `time.sleep` lets other threads have Python's lock."""

    @staticmethod
    def forward(ctx, x, seconds):
        """A view of x; keeps the seconds for later."""
        ctx.seconds = seconds
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        """The same gradient, later."""
        time.sleep(ctx.seconds)
        return grad, None


class Layers(nn.Module):
    """The same weights on every rank. Where `sleep_s` is not 0, each layer's backward pass takes that much longer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.sleep_s = 0.0

    def forward(self, x):
        """A loss whose gradients need all layers."""
        for layer in self.layers:
            x = layer(x)
            if self.sleep_s:
                x = SleepInBackward.apply(x, self.sleep_s)
        return x.square().mean()


class Steps:
    """One rank's models, one for each size of bucket, and a step of each arm."""

    def __init__(self):
        self.layers = [Layers() for _ in BUCKETS_MB]
        self.models = dict(zip(OVERLAPPED, map(under_test, self.layers, BUCKETS_MB), strict=True))
        self.flat = torch.zeros(NUM_PARAMETERS)
        self.forward_s = []  # of each step that only computes
        self.x = torch.empty(0)

    def choose_compute(self, kind):
        """Make the backward pass, or forward and backward where layers compute, take about as long as communication."""
        communication_s = statistics.median(self.seconds(COMMUNICATION) for _ in range(3))
        self.use_batch(1 if kind == "sleeping" else 256)
        if kind == "sleeping":
            for layers in self.layers:
                layers.sleep_s = communication_s / LAYERS
        else:
            compute_s = statistics.median(self.seconds(COMPUTE) for _ in range(3))
            self.use_batch(max(1, round(256 * communication_s / compute_s)))

    def use_batch(self, local_batch):
        """Other inputs on every rank."""
        random = torch.Generator().manual_seed(dist.get_rank())
        self.x = torch.randn(local_batch, WIDTH, generator=random)

    def seconds(self, arm):
        """How long the slowest rank takes."""
        for model in self.models.values():
            model.zero_grad()
        dist.barrier()
        began = time.perf_counter()
        self.step(arm)
        return slowest(time.perf_counter() - began)

    def step(self, arm):
        """What one arm does in a step."""
        if arm in (COMPUTE, NO_OVERLAP):
            self.compute()
        if arm == NO_OVERLAP:
            self.flat = self.gradients(OVERLAPPED[-1])
        if arm in (COMMUNICATION, NO_OVERLAP):
            dist.all_reduce(self.flat)
            self.flat /= dist.get_world_size()
        if arm in OVERLAPPED:
            self.models[arm](self.x).backward()

    def compute(self):
        """Forward and backward, with nothing sent."""
        model, began = self.models[OVERLAPPED[-1]], time.perf_counter()
        with model.no_sync():
            loss = model(self.x)
            self.forward_s.append(time.perf_counter() - began)
            loss.backward()

    def gradients(self, arm):
        """Of one arm's model, in one tensor."""
        return torch.cat([p.grad.flatten() for p in self.models[arm].parameters()])


def slowest(seconds):
    value = torch.tensor(seconds)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return value.item()


def rank_main(kind, rounds):
    """One rank; rank 0 prints the seconds of all steps."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    steps = Steps()
    steps.choose_compute(kind)
    steps.seconds(NO_OVERLAP)
    expected = steps.flat.clone()
    for arm in OVERLAPPED:
        steps.seconds(arm)
        error = (steps.gradients(arm) - expected).norm() / expected.norm()
        if not error < 1e-5:
            raise SystemExit(f"{arm}: gradients differ from those of {NO_OVERLAP} by {error:.1e} of their norm")
    steps.forward_s.clear()
    times = {arm: [] for arm in ARMS}
    forward_s = []
    for number in range(rounds):
        for i in range(len(ARMS)):
            arm = ARMS[(i + number) % len(ARMS)]
            times[arm].append(steps.seconds(arm))
            if arm == COMPUTE:
                forward_s.append(slowest(steps.forward_s[-1]))
    if dist.get_rank() == 0:
        print(json.dumps({"local_batch": len(steps.x), "forward_s": statistics.median(forward_s), "seconds": times}))
    dist.destroy_process_group()


def summary(forward_s, times):
    """Medians and ratios of the arms."""
    median = {arm: statistics.median(values) for arm, values in times.items()}
    compute, communication = median[COMPUTE], median[COMMUNICATION]
    longer, both = max(compute, communication), compute + communication
    least = forward_s + max(compute - forward_s, communication)
    rows = {}
    for arm, step in median.items():
        rows[arm] = {"median_s": round(step, 4)}
        if arm not in (COMPUTE, COMMUNICATION):
            rows[arm] |= {"to_max": round(step / longer, 3), "to_sum": round(step / both, 3), "to_least": round(step / least, 3)}
            rows[arm] |= {"hidden": round((both - step) / min(compute, communication), 3), "met": step <= 1.15 * longer + 0.005}
    return {"target_s": round(1.15 * longer + 0.005, 4), "least_s": round(least, 4), "arms": rows}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rate-mbit", type=float, default=100.0)
    arguments = parser.parse_args()
    can, why_not = available()
    if not can:
        sys.exit(f"overlap: {why_not}")
    results = []
    for kind, count in KINDS:
        expected_s = 2 * (count - 1) / count * NUM_PARAMETERS * 4 * 8 / (arguments.rate_mbit * 1e6)
        timeout_s = 120 + 50 * expected_s * (arguments.rounds + 2)  # a round takes about 10 times the communication
        with shaped_hosts(count, rate_mbit=arguments.rate_mbit) as hosts:
            found = json.loads(hosts.run(__file__, "rank", kind, str(arguments.rounds), timeout_s=timeout_s)[0])
        result = {"layers": kind, "hosts": count, "local_batch": found["local_batch"], "expected_communication_s": round(expected_s, 4)}
        result |= {"forward_s": round(found["forward_s"], 4), **summary(found["forward_s"], found["seconds"])}
        print(f"{count} hosts, {kind} layers", *(f"\n  {arm:20}{row}" for arm, row in result["arms"].items()), flush=True)
        results.append(result | {"seconds": {arm: [round(v, 4) for v in values] for arm, values in found["seconds"].items()}})
    torch.set_num_threads(1)  # for the record: as in the ranks
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    machine = {**environment(), "kernel": platform.release().split("-")[0], "processors": os.cpu_count()}
    facts = {"commit": commit, "environment": machine, "rate_mbit": arguments.rate_mbit, "rounds": arguments.rounds, "results": results}
    Path(__file__).with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    rank_main(sys.argv[2], int(sys.argv[3])) if sys.argv[1:2] == ["rank"] else main()
