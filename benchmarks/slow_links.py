"""What an update costs on slow links, by every way of going together.

    python benchmarks/slow_links.py [--hosts 2 4 8] [--rates 0 1000 100] [--delays 0 5 20] [--mb 25 0.1]
    python benchmarks/slow_links.py --table > benchmarks/slow_links.md

Hosts are network namespaces (links.py; needs root) whose links have a rate in Mbit/s (0: no limit) and a delay in ms, one way. Each holds
12 square layers, 25 MB in all (or 0.1 MB, where only latency is left), and next to nothing to compute: a pass that gives every weight a
gradient, and a step of SGD. Arms, alternating; each runs some updates in a row, and the time is that of the slowest host over their number:

    none             the same update, nothing sent
    all-reduce       DistributedDataParallel, all gradients in one bucket: one ring all-reduce by gloo
    buckets          the same with bigbatch's default buckets
    D-PSGD ring      bigbatch.comm: with both neighbours, while the pass runs
    one peer         D-PSGD with one neighbour at a time, 1, 2, 4, ... places away (one-peer exponential)
    local SGD        weights averaged every 8 updates
    PowerSGD         all-reduce of rank 4, error feedback
    server           one parameter server beside the first host's worker; synchronous
    local SGD 30, DiLoCo 30, with int8 or int4, Streaming DiLoCo 30, NoLoCo 30    on request: exchanges every 30 updates
    compress, mix    what PowerSGD, and taking up one neighbour's weights, cost without any network: for `simulate`

Before them, `link`: each host sends to the next and receives from the one before, all at once, messages of four sizes; the latency and
bandwidth fitted to them are what `simulate` gets. Reported: median over rounds of seconds per update, and how many times faster than
all-reduce. Appends a line a cell to slow_links.jsonl beside this script; what is there is not measured again.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from links import available, shaped_hosts
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from bigbatch.comm.all_reduce import AllReduce
from bigbatch.comm.compression.compressor import PowerSGD
from bigbatch.comm.gossip.d_psgd import DPSGD
from bigbatch.comm.gossip.topology import topology
from bigbatch.comm.local.local_sgd import LocalSGD
from bigbatch.comm.parameter_server.client import ParameterClient
from bigbatch.comm.parameter_server.server import ParameterServer
from bigbatch.comm.parameter_server.work_queue import WorkQueue
from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import Ranks
from bigbatch.core.methods import COMMS
from bigbatch.train.state.record import environment

LAYERS, PERIOD = 12, 8
ARMS = ["none", "all-reduce", "buckets", "D-PSGD ring", "one peer", "local SGD", "PowerSGD", "server", "compress", "mix"]
RARE = {  # arms on request: kind and settings of their [comm]
    "local SGD 30": ("local_sgd", {"period": 30}),
    "DiLoCo 30": ("diloco", {"period": 30}),
    "DiLoCo 30 int8": ("diloco", {"period": 30, "compression": {"kind": "int8"}}),
    "DiLoCo 30 int4": ("diloco", {"period": 30, "compression": {"kind": "int4"}}),
    "Streaming DiLoCo 30": ("streaming_diloco", {"period": 30, "fragments": 2, "overlap": 1}),
    "NoLoCo 30": ("noloco", {"period": 30}),
}
HERE = Path(__file__)
SIZES = (4_000, 100_000, 3_000_000, 25_000_000)  # bytes of a message


class Weights(nn.Module):
    """Layers whose pass costs little, and gives every weight a gradient."""

    def __init__(self, num_bytes):
        super().__init__()
        width = math.isqrt(num_bytes // 4 // LAYERS)
        random = torch.Generator().manual_seed(0)
        self.layers = nn.ParameterList(torch.randn(width, width, generator=random) / width for _ in range(LAYERS))

    def forward(self, x):
        """A value that every weight moves."""
        return sum((x * layer).sum() for layer in self.layers)


def arms(num_bytes, ranks, wanted):
    """A way of going together by name, each with a model of its own."""
    world = ranks.world_size
    made = {
        "none": lambda m: Comm(m),
        "all-reduce": lambda m: AllReduce(m, ranks, bucket_mb=1000),
        "buckets": lambda m: AllReduce(m, ranks),
        "D-PSGD ring": lambda m: DPSGD(m, ranks, topology=topology("ring", world)),
        "one peer": lambda m: DPSGD(m, ranks, topology=topology("one_peer_exponential", world)),
        "local SGD": lambda m: LocalSGD(m, ranks, period=PERIOD),
        "PowerSGD": lambda m: AllReduce(m, ranks, compressor=PowerSGD(4, start_updates=2)),
        "compress": lambda m: CompressAlone(m, ranks),
        "mix": lambda m: MixAlone(m),
        **{name: partial(of_recipe, ranks=ranks, kind=kind, settings=settings) for name, (kind, settings) in RARE.items()},
    }
    return {name: Loop(made[name](Weights(num_bytes))) if name in made else Served(num_bytes, ranks) for name in wanted}


def of_recipe(model, ranks, kind, settings):
    """What a recipe's [comm] would build."""
    method = COMMS[kind]
    return method.build(method.section(**settings), model, ranks, SimpleNamespace(seed=0))


def period_of(arm):
    """Updates from one exchange to the next."""
    return RARE[arm][1]["period"] if arm in RARE else PERIOD if arm == "local SGD" else 1


class Loop:
    """Updates of one model."""

    def __init__(self, comm):
        self.comm, self.updates = comm, 0
        self.optimizer = torch.optim.SGD(comm.model.parameters(), lr=1e-6)

    def update(self):
        """One."""
        with self.comm.sync_context(last=True):
            self.comm.forward(torch.ones(1)).backward()
        self.comm.before_step(self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        self.updates += 1
        self.comm.after_step(self.optimizer, self.updates)


class CompressAlone(Comm):
    """PowerSGD in a group of one."""

    def __init__(self, model, ranks):
        super().__init__(model)
        own = [dist.new_group([rank]) for rank in range(ranks.world_size)][ranks.rank]
        self.forward = DistributedDataParallel(model, process_group=own, gradient_as_bucket_view=True, bucket_cap_mb=1000)
        settings = {"matrix_approximation_rank": 4, "start_powerSGD_iter": 2, "orthogonalization_epsilon": 1e-8}
        self.forward.register_comm_hook(powerSGD_hook.PowerSGDState(own, **settings), powerSGD_hook.powerSGD_hook)


class MixAlone(DPSGD):
    """What an exchange with one neighbour leaves to do when it is over."""

    def sync_context(self, last):  # noqa: ARG002
        """Flatten."""
        self.own, self.received = self._flat_weights(), self._flat_weights()
        return contextlib.nullcontext()

    def after_step(self, optimizer, updates):  # noqa: ARG002
        """Add."""
        self._add(torch.zeros_like(self.own).add_(self.received.sub_(self.own), alpha=0.5))


class Served:
    """Updates by a parameter server in a thread of the first host's process; the same in every host."""

    def __init__(self, num_bytes, ranks):
        self.model, address = Weights(num_bytes), f"tcp://{os.environ['MASTER_ADDR']}:29400"
        if ranks.is_rank_0:
            hosts = ranks.world_size
            queue = WorkQueue(total_samples=1 << 40, global_batch=hosts, gradients_per_update=hosts, timeout_s=600.0, nonce=1)
            held = Weights(num_bytes)
            server = ParameterServer(held.parameters(), queue, token="slow links", address=address)
            threading.Thread(target=self.serve, args=(server, held), daemon=True).start()
        dist.barrier()
        self.client = ParameterClient(address, "slow links", self.model.parameters(), worker=ranks.rank, timeout_s=600.0)

    @staticmethod
    def serve(server, held):
        """As long as the process lives."""
        optimizer = torch.optim.SGD(held.parameters(), lr=1e-6)
        while server.collect() is not None:
            optimizer.step()
            server.publish()

    def update(self):
        """One."""
        work = self.client.pull()
        self.model(torch.ones(1)).backward()
        self.client.push(work)


def slowest(seconds):
    """The largest over hosts."""
    value = torch.tensor([seconds])
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value.item()


def timed(loop, updates):
    """Seconds per update of the slowest host."""
    dist.barrier()
    began = time.perf_counter()
    for _ in range(updates):
        loop.update()
    return slowest((time.perf_counter() - began) / updates)


def shifted(num_bytes, ranks):
    """Seconds until a message to the next host has gone, and that of the one before has come; all hosts at once."""
    sent, received = torch.zeros(num_bytes // 4), torch.empty(num_bytes // 4)
    dist.barrier()
    began = time.perf_counter()
    for _ in range(2):
        works = [dist.irecv(received, (ranks.rank - 1) % ranks.world_size), dist.isend(sent, (ranks.rank + 1) % ranks.world_size)]
        for work in works:
            work.wait()
    return slowest((time.perf_counter() - began) / 2)


def rank_main(num_bytes, rounds, budget_s, wanted):
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=world)
    ranks = Ranks(rank, world)
    link = {size: [shifted(size, ranks) for _ in range(3 if size > 1e6 else 7)][1:] for size in SIZES if size <= max(num_bytes, 4000)}
    loops = arms(num_bytes, ranks, wanted)
    counts = {}
    for name, loop in loops.items():
        for _ in range(3 if name in ("PowerSGD", "compress") else 1):  # compression begins with the third
            once = timed(loop, 1)
        multiple = period_of(name)  # whole periods, beginning with one
        if multiple > 1:
            once = timed(loop, multiple - 1)  # to the end of the first, with its exchange
        counts[name] = multiple * max(1, min(10, int(budget_s / len(loops) / rounds / max(once * multiple, 1e-4))))
    times = {name: [] for name in loops}
    for number in range(rounds):
        for i in range(len(loops)):
            name = list(loops)[(i + number) % len(loops)]
            times[name].append(timed(loops[name], counts[name]))
    if rank == 0:
        print(json.dumps({"link": link, "updates_a_round": counts, "seconds": times}))
        sys.stdout.flush()
    dist.barrier()
    os._exit(0)


def is_measured(cell, arms, lines):
    """Whether lines of this cell have all arms. If one is missing, all are measured again: ratios are within a run."""
    there = {name for line in lines if all(line[field] == value for field, value in cell.items()) for name in line["median_s"]}
    return set(arms) <= there


def table(lines):
    """The table in Markdown: seconds per update; for gossip, how many times faster than the all-reduce that was measured with it."""
    cells = {}
    for line in lines:
        of_cell = cells.setdefault((line["mb"], line["hosts"], line["rate_mbit"], line["delay_ms"]), {})
        beside = line["median_s"].get("all-reduce") or of_cell.get("all-reduce", (None,))[0]
        for arm, seconds in line["median_s"].items():
            of_cell[arm] = (seconds, beside)
    measured = {arm for of_cell in cells.values() for arm in of_cell}
    shown = [arm for arm in (*ARMS, *RARE) if arm in measured - {"none", "compress", "mix"}]
    print(f"| model, MB | hosts | Mbit/s | delay, ms | {' | '.join(shown)} |")
    print("|---" * (4 + len(shown)) + "|")
    for mb, hosts, rate, delay in sorted(cells, key=lambda cell: (-cell[0], -cell[1], cell[2] or math.inf, cell[3])):
        of_cell = cells[mb, hosts, rate, delay]
        texts = []
        for arm in shown:
            seconds, beside = of_cell.get(arm, (None, None))
            times = f" ({beside / seconds:.1f}x)" if arm in ("D-PSGD ring", "one peer") and seconds and beside else ""
            texts.append(f"{seconds:.3g}{times}" if seconds else "-")
        print(f"| {mb:g} | {hosts} | {f'{rate:g}' if rate else 'no limit'} | {delay:g} | {' | '.join(texts)} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 1000.0, 100.0])
    parser.add_argument("--delays", type=float, nargs="+", default=[0.0, 5.0, 20.0])
    parser.add_argument("--mb", type=float, nargs="+", default=[25.0, 0.1])
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=[*ARMS, *RARE])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget-s", type=float, default=45.0, help="seconds of a cell's rounds, about")
    parser.add_argument("--table", action="store_true", help="print what is there as a table, and measure nothing")
    arguments = parser.parse_args()
    if arguments.table:
        table([json.loads(text) for text in HERE.with_suffix(".jsonl").read_text().splitlines()])
        return
    can, why_not = available()
    if not can:
        sys.exit(f"slow_links: {why_not}")
    path = HERE.with_suffix(".jsonl")
    lines = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    torch.set_num_threads(1)  # for the record: as in the ranks
    machine = {**environment(), "kernel": platform.release().split("-")[0], "processors": os.cpu_count()}
    for mb in arguments.mb:
        for count in arguments.hosts:
            for rate in arguments.rates:
                for delay in arguments.delays:
                    cell = {"hosts": count, "rate_mbit": rate, "delay_ms": delay, "mb": mb}
                    if is_measured(cell, arguments.arms, lines):
                        continue
                    with shaped_hosts(count, rate_mbit=rate or None, delay_ms=delay) as hosts:
                        options = [str(int(mb * 1e6)), str(arguments.rounds), str(arguments.budget_s), *arguments.arms]
                        found = json.loads(hosts.run(HERE, "rank", *options, timeout_s=900)[0])
                    medians = {name: round(statistics.median(times), 5) for name, times in found["seconds"].items()}
                    line = {**cell, "median_s": medians, **found, "commit": commit, "environment": machine}
                    lines.append(line)
                    with path.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    print(cell, medians, flush=True)


if __name__ == "__main__":
    rank_main(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5:]) if sys.argv[1:2] == ["rank"] else main()
