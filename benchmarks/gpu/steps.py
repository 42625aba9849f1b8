"""Optimizer steps on ResNet-50's and a transformer's shapes: time, bytes moved over those of a device copy, kernel launches.

Bytes that a rule must move, per float32 element, if each tensor is read and written once a pass: SGD 5 (w, g, v read; w, v written);
AdamW 7; LARS 7 (w, g for the norms; then as SGD); SGDP 7; LAMB and AdamP 10 (w, g, m, v read and m, v written for moments and norms; then
w, m, v read and w written). Times 4 bytes.
"""

import torch
from benchmarks import optimizer_step
from benchmarks.gpu.part import Part, launched_by, seconds_of

from bigbatch import optim

DECAY = optimizer_step.DECAY
ACCESSES = {"LARS": 7, "LAMB": 10, "AdamP": 10, "SGDP": 7, "torch SGD, fused": 5, "torch AdamW, fused": 7}
GOALS = {"LARS": (">=", 0.75), "LAMB": (">=", 0.75)}
ARMS = {
    "torch SGD, fused": lambda ps: torch.optim.SGD(ps, lr=1e-3, momentum=0.9, fused=True, **DECAY),
    "torch AdamW, fused": lambda ps: torch.optim.AdamW(ps, lr=1e-3, fused=True, **DECAY),
    "LARS": optimizer_step.ARMS["LARS"]["bigbatch"],
    "LAMB": optimizer_step.ARMS["LAMB"]["bigbatch"],
    "AdamP": optimizer_step.ARMS["AdamP"]["bigbatch"],
    "SGDP": optimizer_step.ARMS["SGDP"]["bigbatch"],
    "apex FusedLAMB": ("apex.optimizers", "FusedLAMB", {"lr": 1e-3, "max_grad_norm": 0.0, **DECAY}),
    "apex FusedSGD": ("apex.optimizers", "FusedSGD", {"lr": 1e-3, "momentum": 0.9, **DECAY}),
    "timm LARS": optimizer_step.ARMS["LARS"]["timm"],
    "timm LAMB": optimizer_step.ARMS["LAMB"]["timm"],
    "timm AdamP": optimizer_step.ARMS["AdamP"]["timm"],
}
MATRICES = {"Muon": lambda ps: optim.Muon(ps, lr=1e-3), "torch Muon": lambda ps: torch.optim.Muon(ps, lr=1e-3, weight_decay=0.0)}
BASE = {"LARS": "torch SGD, fused", "SGDP": "torch SGD, fused", "LAMB": "torch AdamW, fused", "AdamP": "torch AdamW, fused"}


def copy_bandwidth(part):
    """Bytes/s read and written by a copy on the device."""
    size = 2**22 if part.quick else 2**28
    source = torch.empty(size, device=part.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(part, lambda: target.copy_(source), rounds=5, repeats=1 if part.quick else 10)


def measure(part, name, arms, shapes, bandwidth):
    rounds, repeats = (2, 1) if part.quick else (7, 10)
    elements = sum(torch.Size(shape).numel() for shape in shapes)
    took = {}
    for arm, how in arms.items():
        with part.about(f"{name}, {arm}", least_s=4) as wanted:
            if not wanted or (optimizer := optimizer_step.make(how, shapes, part.device)) is None:
                continue
            took[arm] = seconds_of(part, optimizer.step, rounds=rounds, repeats=repeats)
            part.row(f"{name}, {arm}: step", round(1e3 * took[arm], 4), "ms")
            if arm in (*ACCESSES, *MATRICES):
                launched = launched_by(part, optimizer.step)
                goal = ("<=", 40) if arm in ("LARS", "LAMB", "AdamP", "SGDP") else None
                part.row(f"{name}, {arm}: launches a step", launched.number, goal=goal)
                part.row(f"{name}, {arm}: kernels of a step", round(1e3 * launched.seconds, 4), "ms")
            if arm in ACCESSES and not part.quick:
                fastest = 4 * ACCESSES[arm] * elements / bandwidth
                part.row(f"{name}, {arm}: bytes/s over a copy's", round(fastest / took[arm], 3), goal=GOALS.get(arm))
                part.row(f"{name}, {arm}: the same while kernels run", round(fastest / launched.seconds, 3), goal=GOALS.get(arm))
            base = BASE.get(arm)
            if base in took:
                part.row(f"{name}, {arm}: time over {base}", round(took[arm] / took[base], 3))
            del optimizer
    if {"Muon", "torch Muon"} <= took.keys():
        part.row(f"{name}, Muon: time over torch.optim.Muon", round(took["Muon"] / took["torch Muon"], 3))


def main():
    part = Part("steps")
    bandwidth = copy_bandwidth(part)
    part.row("device copy", round(bandwidth / 1e9, 1), "GB/s read and written")
    sets = (
        {"small": optimizer_step.small()}
        if part.quick
        else {"resnet50": optimizer_step.resnet50(), "transformer": optimizer_step.transformer()}
    )
    for name, shapes in sets.items():
        measure(part, name, ARMS, shapes, bandwidth)
    for name, shapes in sets.items():
        measure(part, name, MATRICES, [(s[0], torch.Size(s[1:]).numel()) for s in shapes if len(s) > 1], bandwidth)
    if part.left() > 0:
        part.finish()


if __name__ == "__main__":
    main()
