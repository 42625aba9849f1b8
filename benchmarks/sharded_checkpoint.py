"""How long does a checkpoint hold training up, when the model is spread over two workers?

    python benchmarks/sharded_checkpoint.py [--rounds 9]

Two workers (gloo, loopback, one thread each) share a model of 100 MB and its SGD momentum of another 100 MB by `fully_shard`. Arms, in
rotating order:

    background  each worker writes its own shards, while training goes on: until `save_checkpoint` returns, and until all is on the disk
    waiting     the same, and wait until all is on the disk: what the same checkpoint costs without a background
    gathered    every worker gathers the whole model, and the first writes it: checkpoints of this kind until version 0.1

A save's time is the slower worker's. Also: an update's time alone, and while a checkpoint is being written. Reported: medians, and
`blocking`, background over waiting. Writes sharded_checkpoint.json beside this script.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from bigbatch import Recipe
from bigbatch.comm.fully_shard import FullyShard
from bigbatch.comm.ranks import Ranks
from bigbatch.core.clock import Clock
from bigbatch.train.state.checkpoint import Progress, save_checkpoint

ARMS = ("background", "waiting", "gathered")
WIDTH, LAYERS = 1581, 10  # 100.0 MB in float32


class Run:
    """One worker's part."""

    def __init__(self, ranks, folder):
        torch.manual_seed(0)
        model = nn.Sequential(*(layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())))
        self.num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        self.comm, self.ranks, self.folder = FullyShard(model, ranks), ranks, folder
        self.writer = self.comm.writer
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        self.inputs = torch.randn(8, WIDTH)
        self.update_s()

    def update_s(self):
        """Seconds of one update, of the slower worker."""
        dist.barrier()
        began = time.perf_counter()
        self.comm.forward(self.inputs).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.slowest(time.perf_counter() - began)

    def save(self, arm):
        """Seconds until training may go on, until all is on the disk, and updates meanwhile."""
        self.comm.writer = None if arm == "gathered" else self.writer
        dist.barrier()
        began = time.perf_counter()
        path = self.folder / "last.pt" if self.ranks.is_rank_0 else None
        progress = Progress(Clock(8, 1), micro_batch=8)
        save_checkpoint(path, recipe=Recipe.named("digits/mlp"), comm=self.comm, optimizer=self.optimizer, progress=progress)
        if arm == "waiting":
            self.writer.wait()
        blocked = time.perf_counter() - began
        updates = []
        if arm == "background":
            while self.slowest(float(self.writer.writing)) > 0:
                updates.append(self.update_s())
            self.writer.wait()
        whole = time.perf_counter() - began
        return self.slowest(blocked), self.slowest(whole), updates

    def slowest(self, value):
        """The larger of the workers' values."""
        return float(self.ranks.max_(torch.tensor([value], dtype=torch.float64)))


def rank_main(rounds, folder):
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{os.environ['PORT']}", rank=rank, world_size=world)
    run = Run(Ranks(rank, world), Path(folder))
    blocked, whole = ({arm: [] for arm in ARMS} for _ in range(2))
    alone, meanwhile = [], []
    for number in range(-1, rounds):  # the first warms up: memory for the copy of the shards
        for i in range(len(ARMS)):
            arm = ARMS[(i + number) % len(ARMS)]
            first, second, updates = run.save(arm)
            if number >= 0:
                blocked[arm].append(first)
                whole[arm].append(second)
                meanwhile += updates
        alone += [run.update_s() for _ in range(3)]
    if rank == 0:
        ms = {arm: round(1000 * statistics.median(values), 1) for arm, values in blocked.items()}
        result = {
            "model_mb": round(run.num_bytes / 1e6, 1),
            "checkpoint_mb": round(2 * run.num_bytes / 1e6, 1),
            "blocked_ms": ms,
            "blocked_ms_of_each": {arm: [round(1000 * value, 1) for value in values] for arm, values in blocked.items()},
            "on_disk_ms": {arm: round(1000 * statistics.median(values), 1) for arm, values in whole.items()},
            "blocking": round(ms["background"] / ms["waiting"], 4),
            "blocking_of_gathered": round(ms["background"] / ms["gathered"], 4),
            "update_ms": {
                "alone": round(1000 * statistics.median(alone), 1),
                "while writing": round(1000 * statistics.median(meanwhile), 1) if meanwhile else None,
            },
            "updates_while_writing": len(meanwhile),
        }
        print(json.dumps(result), flush=True)
    dist.barrier()
    time.sleep(0.2)
    os._exit(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        rank_main(arguments.rounds, arguments.folder)
    from bigbatch.train.state.record import environment

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = {**os.environ, "WORLD_SIZE": "2", "PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        command = [sys.executable, __file__, "--rounds", str(arguments.rounds), "--folder", folder]
        ranks = [subprocess.Popen(command, env={**environ, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True) for rank in range(2)]
        outputs = [rank.communicate(timeout=1800)[0] for rank in ranks]
    found = json.loads(outputs[0])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    load = {"load_average": [round(value, 1) for value in os.getloadavg()]}  # what else the machine did
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({"results": found, "commit": commit, **load, "environment": environment()}, indent=2) + "\n")
    print(json.dumps(found, indent=2))
