"""Does D-PSGD's exchange hide behind the gradient?

    python benchmarks/gossip_overlap.py [--rounds 5] [--hosts 4] [--rates 250]

Every host holds 25 MB of weights in 12 square layers, and computes by sleeping: half as long as the exchange with its neighbours takes, as
long, and twice as long. Arms, in rotating order: compute only; the exchange only; D-PSGD, which exchanges while it computes; DmSGD, which
can't. On the ring and on the one-peer exponential graph. A step's time is the slowest host's. Reported: medians, the step over
max(compute, exchange), and `met`, whether D-PSGD's step <= 1.15 x max + 5 ms. Writes gossip_overlap.json beside this script. Needs root:
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
from slow_links import Weights, slowest

from bigbatch.comm.gossip.d_psgd import DPSGD
from bigbatch.comm.gossip.dmsgd import DmSGD
from bigbatch.comm.gossip.topology import topology
from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import Ranks
from bigbatch.train.state.record import environment

NUM_BYTES = 25_000_000
SHARES = (0.5, 1.0, 2.0)  # of the exchange's time


class Steps:
    """One host's arms, each with a model of its own."""

    def __init__(self, ranks, graph):
        made = topology(graph, ranks.world_size)
        self.comms = {
            "compute": Comm(Weights(NUM_BYTES)),
            "exchange": DPSGD(Weights(NUM_BYTES), ranks, topology=made),
            "D-PSGD": DPSGD(Weights(NUM_BYTES), ranks, topology=made),
            "DmSGD": DmSGD(Weights(NUM_BYTES), ranks, topology=made),
        }
        self.optimizers = {name: torch.optim.SGD(comm.model.parameters(), lr=1e-6) for name, comm in self.comms.items()}
        self.updates = 0

    def seconds(self, arm, compute_s):
        """How long the slowest host takes for a step."""
        comm, optimizer = self.comms[arm], self.optimizers[arm]
        dist.barrier()
        began = time.perf_counter()
        with comm.sync_context(last=True):
            if arm != "exchange":
                time.sleep(compute_s)
                comm.forward(torch.ones(1)).backward()
        comm.before_step(optimizer)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        self.updates += 1
        comm.after_step(optimizer, self.updates)
        return slowest(time.perf_counter() - began)


def rank_main(graph, rounds):
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=world)
    steps = Steps(Ranks(rank, world), graph)
    exchange_s = statistics.median(steps.seconds("exchange", 0.0) for _ in range(3))
    found = []
    for share in SHARES:
        times = {arm: [] for arm in steps.comms}
        for number in range(rounds):
            for i in range(len(times)):
                arm = list(times)[(i + number) % len(times)]
                times[arm].append(steps.seconds(arm, share * exchange_s))
        found.append({"compute_to_exchange": share, "seconds": times})
    if rank == 0:
        print(json.dumps(found))
        sys.stdout.flush()
    dist.barrier()
    os._exit(0)


def summary(cell):
    """Medians and ratios."""
    median = {arm: round(statistics.median(times), 4) for arm, times in cell["seconds"].items()}
    longer = max(median["compute"], median["exchange"])
    ratios = {f"{arm} to max": round(median[arm] / longer, 3) for arm in ("D-PSGD", "DmSGD")}
    return {**median, **ratios, "met": median["D-PSGD"] <= 1.15 * longer + 0.005}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--rates", type=float, nargs="+", default=[250.0])
    arguments = parser.parse_args()
    can, why_not = available()
    if not can:
        sys.exit(f"gossip_overlap: {why_not}")
    results = []
    for rate in arguments.rates:
        for graph in ("ring", "one_peer_exponential"):
            with shaped_hosts(arguments.hosts, rate_mbit=rate) as hosts:
                cells = json.loads(hosts.run(__file__, "rank", graph, str(arguments.rounds), timeout_s=900)[0])
            for cell in cells:
                results.append({"rate_mbit": rate, "topology": graph, **cell, "median_s": summary(cell)})
                print(rate, graph, cell["compute_to_exchange"], results[-1]["median_s"], flush=True)
    torch.set_num_threads(1)  # for the record: as in the ranks
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    machine = {**environment(), "kernel": platform.release().split("-")[0], "processors": os.cpu_count()}
    facts = {"commit": commit, "environment": machine, "hosts": arguments.hosts, "results": results}
    Path(__file__).with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    rank_main(sys.argv[2], int(sys.argv[3])) if sys.argv[1:2] == ["rank"] else main()
