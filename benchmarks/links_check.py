"""Are shaped links as slow as they say? Times of gloo's exchanges beside what the rate and the delay allow.

    python benchmarks/links_check.py [--rounds 3]

All-reduce of n hosts takes 2(n-1)/n x bytes x 8 / rate where each host sends and receives at once; a gather shows that a host's download
is limited too: (n-1) x bytes x 8 / rate. One byte there and back takes twice the delay. Each round makes every kind of hosts anew;
within it, the exchanges alternate. Reported: the median over rounds and repeats, and its ratio to what is expected. Writes
links_check.json beside this script. Needs root: see links.py.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from links import available, shaped_hosts

from bigbatch.train.state.record import environment

LINKS = [{"rate_mbit": 100}, {"rate_mbit": None}, {"rate_mbit": 100, "delay_ms": 10}]
HOSTS = [2, 4]
REPEATS = 2  # of each exchange in a round, after one that warms up
THERE_AND_BACK = "there and back, 1 byte"


def gather(buffer):
    dist.gather(buffer, [torch.empty_like(buffer) for _ in range(dist.get_world_size())] if dist.get_rank() == 0 else None, dst=0)


EXCHANGES = {  # name: (megabytes, function, bytes through the busiest direction of a link, as a multiple of the size, for n hosts)
    "all-reduce 5 MB": (5, dist.all_reduce, lambda n: 2 * (n - 1) / n),
    "all-reduce 25 MB": (25, dist.all_reduce, lambda n: 2 * (n - 1) / n),
    "gather 5 MB": (5, gather, lambda n: n - 1),
}


def rank_main():
    """One rank: lists of seconds per exchange, the slowest rank's, printed by rank 0."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    line = plain_connection()
    seconds = {name: [] for name in (*EXCHANGES, THERE_AND_BACK)}
    for repeat in range(1 + REPEATS):
        for name in seconds:
            buffer = torch.ones(round(EXCHANGES[name][0] * 1e6 / 4)) if name in EXCHANGES else None
            dist.barrier()
            began = time.perf_counter()
            if buffer is not None:
                EXCHANGES[name][1](buffer)
            elif dist.get_rank() == 1:
                line.send(b"?")
                line.recv(1)
            slowest = torch.tensor(time.perf_counter() - began)
            if buffer is None and dist.get_rank() == 0:
                line.recv(1)
                line.send(b"!")
            dist.all_reduce(slowest, dist.ReduceOp.MAX)
            if repeat:
                seconds[name].append(slowest.item())
    if dist.get_rank() == 0:
        print(json.dumps(seconds))
    dist.destroy_process_group()


def plain_connection():
    """TCP between ranks 0 and 1: gloo's own send waits for a message that the receiver is ready."""
    address = (os.environ["MASTER_ADDR"], 5000)
    server = socket.create_server(address) if dist.get_rank() == 0 else None
    dist.barrier()
    if dist.get_rank() == 1:
        return socket.create_connection(address)
    return server.accept()[0] if server else None


def expected_s(name, hosts, rate_mbit=None, delay_ms=0):
    """What the links allow; None where nothing limits. Delays of an exchange's steps are left out where the rate rules."""
    if name == THERE_AND_BACK:
        return 2 * delay_ms / 1000 or None
    megabytes, _, multiple = EXCHANGES[name]
    return multiple(hosts) * megabytes * 8 / rate_mbit if rate_mbit else None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    can, why_not = available()
    if not can:
        sys.exit(f"links_check: {why_not}")
    kinds = [(count, link) for count in HOSTS for link in LINKS]
    seconds = [{name: [] for name in (*EXCHANGES, THERE_AND_BACK)} for _ in kinds]
    for _ in range(rounds):
        for (count, link), into in zip(kinds, seconds, strict=True):
            with shaped_hosts(count, **link) as hosts:
                for name, values in json.loads(hosts.run(__file__, "rank")[0]).items():
                    into[name] += values
    rows = []
    for (count, link), of_kind in zip(kinds, seconds, strict=True):
        for name, values in of_kind.items():
            median, expected = statistics.median(values), expected_s(name, count, **link)
            row = {"hosts": count, "delay_ms": 0, **link, "exchange": name, "median_s": round(median, 5)}
            row |= {"expected_s": expected and round(expected, 4), "ratio": expected and round(median / expected, 3)}
            rows.append(row | {"seconds": [round(v, 5) for v in values]})
            print(json.dumps({key: value for key, value in row.items() if key != "seconds"}), flush=True)
    torch.set_num_threads(1)  # for the record: as in the ranks
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    control = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    machine = {**environment(), "kernel": platform.release().split("-")[0], "processors": os.cpu_count(), "tcp": control}
    facts = {"commit": commit, "environment": machine, "rounds": rounds, "rows": rows}
    Path(__file__).with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    rank_main() if sys.argv[1:] == ["rank"] else main()
