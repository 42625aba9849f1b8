"""A worker process of `bigbatch.comm.launch.preflight`. Prints each stage that it completes; rank 0 prints the result at the end."""

import argparse
import faulthandler
import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch
from torch import distributed

from bigbatch.core.hardware.devices import synchronize
from bigbatch.core.hardware.machine import matmul_gflops

SIZES = tuple(4096 * 4**i for i in range(7))
"""Bytes of the timed all-reduces: 4 kB to 16 MB."""
MIN_ROUNDS, MAX_ROUNDS, SECONDS_PER_SIZE = 3, 25, 0.25
"""Rounds per size: as many as fit into the seconds, within the limits."""
PINGS = 50


def main() -> None:
    """Join the process group, measure, print."""
    parser = argparse.ArgumentParser()
    for name, kind in {"rank": int, "workers": int, "threads": int, "timeout_s": float, "store": str, "backend": str}.items():
        parser.add_argument(name, type=kind)
    a = parser.parse_args()
    faulthandler.dump_traceback_later(a.timeout_s, exit=True)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(a.threads)
    device = f"cuda:{a.rank}" if a.backend == "nccl" else "cpu"
    if device != "cpu":
        torch.cuda.set_device(device)
    print("started", flush=True)
    timeout = timedelta(seconds=a.timeout_s)
    distributed.init_process_group(a.backend, f"file://{a.store}", timeout=timeout, rank=a.rank, world_size=a.workers)
    distributed.barrier()
    print("joined the process group", flush=True)
    alone = matmul_gflops(device=device) if a.rank == 0 else 0.0
    distributed.barrier()
    print("matrix products of one rank", flush=True)
    together = _all_gather(matmul_gflops(device=device), a.workers, device)
    print("matrix products of all ranks", flush=True)
    latency = _latency_s(a.rank, device)
    distributed.barrier()
    print("latency of messages", flush=True)
    rounds = [{"num_bytes": b, "seconds": _all_reduce_s(b, device)} for b in SIZES]
    distributed.barrier()
    distributed.destroy_process_group()
    if a.rank == 0:
        print(json.dumps({"alone_gflops": alone, "together_gflops": together, "latency_s": latency, "all_reduce": rounds}), flush=True)


def _exit_with_parent() -> None:
    """Exit when the parent is gone: it holds the other end of standard input."""
    os.read(0, 1)
    os._exit(1)


def _all_gather(value: float, workers: int, device: str) -> list[float]:
    values = [torch.zeros(1, device=device) for _ in range(workers)]
    distributed.all_gather(values, torch.tensor([value], device=device))
    return [v.item() for v in values]


def _slowest(values: list[float], device: str) -> list[float]:
    """Maximum over ranks of each element."""
    maximum = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(maximum, distributed.ReduceOp.MAX)
    return [float(v) for v in maximum]


def _seconds(act: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    act()
    synchronize(torch.device(device))
    return time.perf_counter() - start


def _all_reduce_s(num_bytes: int, device: str) -> list[float]:
    """Seconds of each round, of the slowest rank; all ranks start a round at a barrier."""
    values = torch.zeros(num_bytes // 4, device=device)

    def one_round() -> float:
        distributed.barrier()
        return _seconds(lambda: distributed.all_reduce(values), device)

    (estimate,) = _slowest([one_round()], device)  # the same on all ranks, so all make the same number of rounds
    rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, int(SECONDS_PER_SIZE / estimate)))
    return _slowest([one_round() for _ in range(rounds)], device)


def _latency_s(rank: int, device: str) -> float:
    """Half the median round trip of four bytes between ranks 0 and 1."""
    message, trips = torch.zeros(1, device=device), []
    for _ in range(PINGS if rank < 2 else 0):
        if rank == 0:
            trips.append(_seconds(lambda: (distributed.send(message, 1), distributed.recv(message, 1)), device))
        else:
            distributed.recv(message, 0)
            distributed.send(message, 0)
    return statistics.median(trips) / 2 if trips else 0.0


if __name__ == "__main__":
    main()
