"""Ghost batch norm beside torch's batch norm: time of forward and backward, and kernels that a layer launches."""

import torch
from benchmarks.gpu.part import Part, launched_by, seconds_of
from torch import nn

from bigbatch.layers import GhostBatchNorm2d

CASES = {
    "1024 x 64 x 14 x 14, groups of 128": (1024, 64, 14, 128),
    "256 x 256 x 28 x 28, groups of 32": (256, 256, 28, 32),
    "1000 x 64 x 14 x 14, groups of 128, the last 104": (1000, 64, 14, 128),
}


def pass_of(layer, x, dy):
    x.grad = None
    layer.zero_grad()
    layer(x).backward(dy)


def measure(part, what, shape, dtype, memory_format):
    n, channels, side, ghost = shape
    x = torch.randn(n, channels, side, side, device=part.device, dtype=dtype).to(memory_format=memory_format).requires_grad_()
    dy = torch.randn_like(x)
    ghosts, plain = GhostBatchNorm2d(channels, ghost_batch=ghost).to(part.device), nn.BatchNorm2d(channels).to(part.device)
    rounds, repeats = (2, 1) if part.quick else (9, 10)
    times = [seconds_of(part, lambda layer=layer: pass_of(layer, x, dy), rounds=rounds, repeats=repeats) for layer in (ghosts, plain)]
    part.row(f"{what}: ghost batch norm", round(1e3 * times[0], 4), "ms")
    part.row(f"{what}: time over nn.BatchNorm2d", round(times[0] / times[1], 3), goal=("<=", 1.1))
    ours, torchs = (launched_by(part, lambda layer=layer: pass_of(layer, x, dy)) for layer in (ghosts, plain))
    part.row(f"{what}: kernels' time over nn.BatchNorm2d's", round(ours.seconds / torchs.seconds, 3), goal=("<=", 1.1))
    part.row(f"{what}: launches (nn.BatchNorm2d: {torchs.number})", ours.number, goal=("<=", 8))


def main():
    part = Part("norms")
    kinds = [(torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last)]
    for name, shape in {"small": (32, 4, 5, 8)}.items() if part.quick else CASES.items():
        for dtype, memory_format in kinds:
            what = f"{name}, {str(dtype).removeprefix('torch.')}, {str(memory_format).removeprefix('torch.').removesuffix('_format')}"
            with part.about(what, least_s=3) as wanted:
                if wanted:
                    measure(part, what, shape, dtype, memory_format)
    if part.left() > 0:
        part.finish()


if __name__ == "__main__":
    main()
