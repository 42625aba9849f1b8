"""Does the simulator say what Goyal et al. 2017 (arXiv:1706.02677) saw? ResNet-50 on 256 GPUs, 8 a server, 50 Gbit/s.

    python benchmarks/simulate_goyal.py

From the paper: 100 MB of gradients, 120 ms of backward pass, 32 servers; halving-doubling 3 times as fast as the ring on them; about 90 %
efficiency from 8 GPUs to 256. Each tensor is exchanged by itself, as Caffe2 did: 161 all-reduces, ready as the backward pass goes through
the layers at a rate set by their multiplications. Not in the paper, so tried: the latency of a message (10 to 100 microseconds), how many
all-reduces were in flight (1 to 8), how much GPUs' times differ (0 to 8 %), and the forward pass, taken as half of the backward pass.

Efficiency is that of the paper: the time of one server of 8 GPUs, which wait for each other too, over that of 32. Also stored: the same
from a message-by-message simulation, and times of both all-reduces by size; `both_figures_at` is the row that comes near to both figures.
How much of the 10 % was waiting for others, the paper does not tell. Writes simulate_goyal.json beside this script. No network is
used: nothing here is a measurement but the paper's two figures.
"""

import json
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from bigbatch.simulate import discrete_event
from bigbatch.simulate.all_reduce import all_reduce, halving_doubling, ring
from bigbatch.simulate.case import Case
from bigbatch.simulate.link import link_of
from bigbatch.simulate.overlap import Bucket, backward_and_exchange_s
from bigbatch.simulate.strategies import seconds_per_update
from bigbatch.train.state.record import environment

PAPER = {"efficiency": 0.9, "ring_over_halving_doubling": 3.0}
BACKWARD_S, FORWARD_S = 0.120, 0.060
SERVERS, GPUS = 32, 8
LATENCIES_US, STREAMS, SPREADS = (10, 20, 50, 100), (1, 2, 4, 8), (0.0, 0.02, 0.05, 0.08)
ELEMENTS = (10_000, 100_000, 1_000_000, 10_000_000)


def resnet50():
    """Its layers, from the first to the last: (numbers of elements of the layer's tensors, multiplications per image)."""
    convolutions, channels = [(3, 64, 7, 112)], 64
    for width, blocks, size in ((64, 3, 56), (128, 4, 28), (256, 6, 14), (512, 3, 7)):
        for block in range(blocks):
            if block == 0:
                convolutions.append((channels, 4 * width, 1, size))  # of the short cut
            before = size if block or width == 64 else 2 * size  # the 3 x 3 has the stride
            convolutions += [(channels, width, 1, before), (width, width, 3, size), (width, 4 * width, 1, size)]
            channels = 4 * width
    layers = [([a * b * k * k, b, b], a * b * k * k * size * size) for a, b, k, size in convolutions]  # weights, and two of a batch norm
    return [*layers, ([2048 * 1000, 1000], 2048 * 1000)]


def tensors():
    """Each tensor as a bucket, from the last layer to the first."""
    whole, done, found = sum(work for _, work in resnet50()), 0, []
    for sizes, work in reversed(resnet50()):
        done += work
        found += [Bucket(4 * size, done / whole) for size in sizes]
    return tuple(found)


def row(latency_us, streams, spread):
    buckets = tensors()
    link = link_of(bandwidth_bytes_per_s=50e9 / 8, latency_s=latency_us * 1e-6)
    share, shape = BACKWARD_S / (FORWARD_S + BACKWARD_S), {"workers_per_host": GPUS, "buckets": buckets, "streams": streams}
    size = sum(bucket.num_bytes for bucket in buckets)
    case = Case(SERVERS * GPUS, link, size, FORWARD_S + BACKWARD_S, backward_share=share, spread=spread, **shape)
    one_server_s = replace(case, workers=GPUS).slowest_s
    step = {name: seconds_per_update(name, case) for name in ("ring_all_reduce", "halving_doubling")}
    alone = {}
    for name in ("ring", "halving_doubling"):
        at_once = [bucket._replace(ready=0.0) for bucket in buckets]
        alone[name] = backward_and_exchange_s(at_once, partial(all_reduce, name, link, SERVERS), backward_s=1e-9, streams=streams)
    facts = {"latency_us": latency_us, "in_flight": streams, "spread": spread}
    facts |= {f"{name}_ms": 1000 * seconds for name, seconds in step.items()}
    facts |= {f"{name}_efficiency": one_server_s / seconds for name, seconds in step.items()}
    facts["ring_over_halving_doubling_step"] = step["ring_all_reduce"] / step["halving_doubling"]
    facts["ring_over_halving_doubling_exchanges"] = alone["ring"] / alone["halving_doubling"]
    if streams == 1 and spread == 0:
        times = np.full(SERVERS, case.step_s)
        for name, of in (("ring", "ring_all_reduce"), ("halving_doubling", "halving_doubling")):
            facts[f"{of}_by_messages_ms"] = 1000 * discrete_event.overlapped(link, name, buckets, times, backward_share=share)
    return {name: round(value, 4) for name, value in facts.items()}


def by_size(elements):
    link = link_of(bandwidth_bytes_per_s=50e9 / 8, latency_s=50e-6)
    a, b = ring(link, SERVERS).seconds(4 * elements), halving_doubling(link, SERVERS).seconds(4 * elements)
    return {"elements": elements, "ring_ms": round(1000 * a, 3), "halving_doubling_ms": round(1000 * b, 3), "ratio": round(a / b, 2)}


def main():
    rows = [row(latency, streams, 0.0) for latency in LATENCIES_US for streams in STREAMS] + [row(50, 1, s) for s in SPREADS[1:]]
    sizes = [by_size(elements) for elements in ELEMENTS]
    for each in [*rows, *sizes]:
        print(each)
    layers = {"tensors": len(tensors()), "million_parameters": round(sum(b.num_bytes for b in tensors()) / 4e6, 3)}
    layers["giga_multiplications"] = round(sum(work for _, work in resnet50()) / 1e9, 3)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    facts = {
        "commit": commit,
        "environment": environment(),
        "paper": PAPER,
        "resnet50": layers,
        "both_figures_at": row(50, 1, 0.05),
        "rows": rows,
        "by_size_at_50_us": sizes,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
