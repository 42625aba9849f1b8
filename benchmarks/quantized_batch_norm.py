"""How large a shift does exact integer batch norm need, beside plain rounding? Writes quantized_batch_norm.json beside this script.

    python benchmarks/quantized_batch_norm.py [--channels 1000]

For each width w, inputs 0 <= X < 2^w and random channels of two kinds:
    plain       gamma in (0, 1.5), beta in (0, 16), mean 0, var 1, in steps of 1: nothing is clipped, every level counts
    activation  gamma of either sign, beta, mean and var such that the levels, 8 bits in steps of 4 / 255, are those of ReLU networks
Each channel is searched alone for its smallest K (`search`), and for the smallest with which plain rounding serves (`rounding`); all inputs
of all channels are then tried, with the search's own K and with the K that the channels share. One line a cell; seconds are of one thread.
"""

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path

import torch
from torch import nn

from bigbatch.layers import QuantizedBatchNorm
from bigbatch.layers.integer_affine import exact_affines, largest_intermediate, plain_rounding, serves, share_scale
from bigbatch.layers.quantized_batch_norm import critical_points, exact_levels, first_mismatch, fold_batch_norm
from bigbatch.train.state.record import environment

BLOCK = 50  # channels that are searched together: bounds memory where every level counts


def random_norm(kind, channels, width, seed):
    """An evaluated batch norm of random numbers, the step and the bits of the quantiser behind it."""
    draw = torch.Generator().manual_seed(seed)
    uniform = [torch.rand(channels, generator=draw, dtype=torch.float64) for _ in range(4)]
    norm = nn.BatchNorm1d(channels, eps=0.0 if kind == "plain" else 1e-5).double().eval()
    if kind == "plain":
        norm.weight.data, norm.bias.data = 1.5 * uniform[0], 16 * uniform[1]
        return norm, 1.0, width + 2
    norm.weight.data = (0.05 + 2 * uniform[0]) * torch.where(uniform[1] < 0.5, -1, 1)
    norm.bias.data = torch.randn(channels, generator=draw, dtype=torch.float64)
    norm.running_mean = 2**width * uniform[2]
    norm.running_var = (2**width * (0.02 + 0.3 * uniform[3])) ** 2
    return norm, 4 / 255, 8


def summary(values):
    return {"median": statistics.median(values), "max": max(values)} if values else None


def measure(kind, channels, width):
    norm, step, bits = random_norm(kind, channels, width, seed=width)
    line, lo, hi = fold_batch_norm(norm, step=step), torch.zeros(channels, dtype=torch.int64), torch.full((channels,), 2**width - 1)
    start = time.perf_counter()
    points = critical_points(line, lo, hi, bits=bits)
    affines = [affine for i in range(0, channels, BLOCK) for affine in exact_affines(points[i : i + BLOCK], bits=bits)]
    seconds = time.perf_counter() - start
    rounding = []
    for a, b, each in zip(line.a.tolist(), line.b.tolist(), points, strict=True):
        rounding.append(next((K for K in range(64) if serves(plain_rounding(a, b, K), each)), None))
    layer, start = QuantizedBatchNorm(channels, bits=bits), time.perf_counter()
    layer.lo, layer.hi = lo, hi
    wrong = []
    for each in (affines, share_scale(affines)):
        layer.A, layer.B, layer.K = (torch.tensor(column) for column in zip(*each, strict=True))
        wrong.append(first_mismatch(layer, lambda X: exact_levels(X, line, bits=bits)))
    fits = sum(largest_intermediate(affine, 0, 2**width - 1) < 2**31 for affine in share_scale(affines))
    row = {"kind": kind, "width": width, "output_bits": bits, "channels": channels, "seed": width}
    row |= {"search": summary([affine.K for affine in affines]), "rounding": summary([K for K in rounding if K is not None])}
    row |= {
        "rounding_never": rounding.count(None),
        "search_needs_more": sum(r is not None and r < s.K for r, s in zip(rounding, affines, strict=True)),
    }
    row |= {"inputs_tried": 2 * channels * 2**width, "first_wrong": wrong, "channels_in_int32_with_the_shared_K": fits}
    row |= {"search_s": round(seconds, 3), "verify_s": round(time.perf_counter() - start, 3)}
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--channels", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cells = [*(("plain", w) for w in (6, 8, 10, 12)), *(("activation", w) for w in (6, 8, 10, 12, 16, 20))]
    rows = [measure(kind, arguments.channels, width) for kind, width in cells]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    arguments.out.write_text(json.dumps({"commit": commit, "environment": environment(), "rows": rows}, indent=2) + "\n")
