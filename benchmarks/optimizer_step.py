"""How long is one optimizer step, beside the fastest other library and torch's own?

    python benchmarks/optimizer_step.py [--rounds 15] [--threads 1]

Parameter sets: resnet50 (161 tensors, 25.6 M), transformer (12 layers of 768, about 85 M), small (a CNN of 40 tensors). One process;
the arms alternate within each round, the medians and their ratio are reported. Writes optimizer_step.json beside this script. Peers
that are not installed are left out: pip install --no-deps timm pytorch_optimizer torch-optimizer open-lars.
"""

import argparse
import importlib
import importlib.util
import json
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

import torch

from bigbatch import optim
from bigbatch.train.state.record import environment

HERE = Path(__file__).parent


def resnet50():
    shapes, inputs = [(64, 3, 7, 7), (64,), (64,)], 64
    for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(depth):
            for shape in ((width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                shapes += [shape, shape[:1], shape[:1]]
            if block == 0:
                shapes += [(4 * width, inputs, 1, 1), (4 * width,), (4 * width,)]
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def transformer():
    layer = [(2304, 768), (2304,), (768, 768), (768,), (3072, 768), (3072,), (768, 3072), (768,), *[(768,)] * 4]
    return layer * 12


def small():
    shapes = []
    for i in range(13):
        shapes += [(32, 32 if i else 3, 3, 3), (32,), (32,)]
    return [*shapes, (10, 32)]


def peer(module, name):
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return None
    for part in ("timm", "timm.optim") if module.startswith("timm") else ():  # timm's __init__ wants torchvision, its optimizers don't
        if part not in sys.modules:
            spec = importlib.util.find_spec(part)
            sys.modules[part] = types.ModuleType(part)
            sys.modules[part].__spec__, sys.modules[part].__path__ = spec, list(spec.submodule_search_locations)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        print(f"{module}.{name}: {error}", file=sys.stderr)
        return None


DECAY = {"weight_decay": 1e-4}


class NormsThenFusedSGD:
    """What a trust ratio costs at least in passes of torch's own: the norms of weights and gradients, then the fused update."""

    def __init__(self, params):
        self.tensors = [p.detach() for p in params] + [p.grad for p in params]
        self.update = torch.optim.SGD(params, lr=1e-3, momentum=0.9, fused=True, **DECAY)

    def step(self):
        torch.stack(torch._foreach_norm(self.tensors)).tolist()
        self.update.step()


def compiled_lars(params):
    """Our update as `torch.compile` makes it of the foreach step; compiled once, which takes a minute or more."""
    optimizer = optim.LARS(params, lr=1.0, **DECAY)
    optimizer.step()
    optimizer.step = torch.compile(optimizer.step)
    return optimizer


ARMS = {
    "LARS": {
        "bigbatch": lambda ps: optim.LARS(ps, lr=1.0, **DECAY),
        "timm": ("timm.optim.lars", "Lars", {"lr": 1.0, "momentum": 0.9, **DECAY}),
        "pytorch_optimizer": ("pytorch_optimizer", "LARS", {"lr": 1.0, **DECAY}),
        "open-lars": ("open_lars", "LARS", {"lr": 1.0, **DECAY}),
        "torch.optim.SGD(fused)": lambda ps: torch.optim.SGD(ps, lr=1e-3, momentum=0.9, fused=True, **DECAY),
        "norms, then SGD(fused)": NormsThenFusedSGD,
    },
    "LARS compiled": {
        "bigbatch": compiled_lars,
        "torch.optim.SGD(fused)": lambda ps: torch.optim.SGD(ps, lr=1e-3, momentum=0.9, fused=True, **DECAY),
    },
    "LAMB": {
        "bigbatch": lambda ps: optim.LAMB(ps, lr=1e-3, **DECAY),
        "timm": ("timm.optim.lamb", "Lamb", {"lr": 1e-3, "max_grad_norm": None, **DECAY}),
        "pytorch_optimizer": ("pytorch_optimizer", "Lamb", {"lr": 1e-3, **DECAY}),
        "torch-optimizer": ("torch_optimizer.lamb", "Lamb", {"lr": 1e-3, **DECAY}),
    },
    "AdamP": {
        "bigbatch": lambda ps: optim.AdamP(ps, lr=1e-3, **DECAY),
        "timm": ("timm.optim.adamp", "AdamP", {"lr": 1e-3, **DECAY}),
        "pytorch_optimizer": ("pytorch_optimizer", "AdamP", {"lr": 1e-3, **DECAY}),
        "torch-optimizer": ("torch_optimizer.adamp", "AdamP", {"lr": 1e-3, **DECAY}),
    },
    "SGDP": {
        "bigbatch": lambda ps: optim.SGDP(ps, lr=1e-3, momentum=0.9, **DECAY),
        "timm": ("timm.optim.sgdp", "SGDP", {"lr": 1e-3, "momentum": 0.9, **DECAY}),
        "pytorch_optimizer": ("pytorch_optimizer", "SGDP", {"lr": 1e-3, "momentum": 0.9, **DECAY}),
        "torch-optimizer": ("torch_optimizer.sgdp", "SGDP", {"lr": 1e-3, "momentum": 0.9, **DECAY}),
    },
    "Muon": {
        "bigbatch": lambda ps: optim.Muon(ps, lr=1e-3),
        "torch.optim.Muon": lambda ps: torch.optim.Muon(ps, lr=1e-3, weight_decay=0.0),
    },
}


def make(arm, shapes, device="cpu"):
    torch.manual_seed(0)
    params = [torch.randn(s, device=device).mul_(0.05).requires_grad_() for s in shapes]
    for p in params:
        p.grad = torch.randn_like(p).mul_(0.01)
    if callable(arm):
        return arm(params)
    cls = peer(arm[0], arm[1])
    return cls and cls(params, **arm[2])


def seconds(optimizer, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        optimizer.step()
    return (time.perf_counter() - start) / repeats


def measure(method, name, shapes, rounds):
    if method == "Muon":
        shapes = [(s[0], torch.Size(s[1:]).numel()) for s in shapes if len(s) > 1]  # torch's takes matrices only
    arms = {arm: optimizer for arm, how in ARMS[method].items() if (optimizer := make(how, shapes)) is not None}
    repeats = 20 if name == "small" else 1
    times = {arm: [] for arm in arms}
    for optimizer in arms.values():
        seconds(optimizer, 2)
    for _ in range(3 if method == "Muon" and name != "small" else rounds):
        for arm, optimizer in arms.items():
            times[arm].append(seconds(optimizer, repeats))
    medians = {arm: statistics.median(ts) for arm, ts in times.items()}
    ours = medians["bigbatch"]
    row = {"method": method, "parameters": name, "median_ms": {arm: round(1e3 * t, 4) for arm, t in medians.items()}}
    row["ratio_to"] = {arm: round(ours / t, 3) for arm, t in medians.items() if arm != "bigbatch"}
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=[m for m in ARMS if m != "LARS compiled"])
    parser.add_argument("--sets", nargs="+", default=["resnet50", "transformer", "small"])
    parser.add_argument("--no-store", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sets = {"resnet50": resnet50(), "transformer": transformer(), "small": small()}
    rows = [measure(m, s, sets[s], arguments.rounds) for m in arguments.methods for s in arguments.sets]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    if not arguments.no_store:
        facts = {"commit": commit, "environment": environment(), "rounds": arguments.rounds, "rows": rows}
        (HERE / "optimizer_step.json").write_text(json.dumps(facts, indent=2) + "\n")
