"""Steps of every optimizer on the simulated device: with rates as numbers and as tensors, in the types and layouts that models have."""

from functools import partial

import torch
from tests.accelerator.place import DEVICE, phase
from torch import nn

from bigbatch import Recipe
from bigbatch.optim import LAMB, LARS, SGDP, AdamP, Muon, SoapMuon, muon_groups, param_groups
from bigbatch.optim.muon.newton_schulz import orthogonalise
from bigbatch.schedules.clock_lr import ClockLR, set_lr
from bigbatch.train.setup.build import build_optimizer

OURS = {
    "LARS": (LARS, [{}, {"nesterov": True}, {"lr_in_momentum": False}, {"weight_decay": 0.01, "maximize": True, "eps": 1e-8}]),
    "LAMB": (LAMB, [{}, {"bias_correction": False}, {"weight_decay": 0.01, "maximize": True}]),
    "AdamP": (AdamP, [{}, {"weight_decay": 0.01}, {"delta": 10.0, "maximize": True}]),
    "SGDP": (SGDP, [{}, {"weight_decay": 0.01, "nesterov": True}, {"delta": 10.0, "dampening": 0.1, "maximize": True}]),
    "SoapMuon": (SoapMuon, [{}, {"longest": 4, "weight_decay": 0.01}, {"sides": "outputs", "maximize": True, "dtype": torch.float32}]),
    "Muon": (Muon, [{}, {"weight_decay": 0.01, "nesterov": False}, {"scale": "original", "maximize": True, "dtype": torch.float32}]),
}
OF_RECIPES = {
    "sgd": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
    "adam": {"lr": 1e-3, "weight_decay": 1e-4},
    "adamw": {"lr": 1e-3, "weight_decay": 1e-2, "decay_norms_and_biases": False},
    "lars": {"lr": 1.0, "weight_decay": 1e-4},
    "lamb": {"lr": 1e-3, "weight_decay": 1e-2},
    "adamp": {"lr": 1e-3, "weight_decay": 1e-2},
    "sgdp": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
    "muon": {"lr": 0.02, "adam_lr": 1e-3, "weight_decay": 1e-2},
    "soap_muon": {"lr": 0.02, "adam_lr": 1e-3, "weight_decay": 1e-2},
}
"""As recipes have them, and `build_optimizer` makes of them."""
RECIPE = {"task": "digits/mlp", "num_train_samples": 64, "batch": {"global_batch": 32}, "budget": {"updates": 4}}


def model(dtype=torch.float32):
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 32), nn.Linear(32, 10))
    made[2].to(memory_format=torch.channels_last)
    return made.to(DEVICE, dtype)


def give_gradients(parameters):
    for i, p in enumerate(parameters):
        p.grad = None if i == 3 else torch.randn_like(p)  # one has none, as a frozen layer's


def steps(optimizer, parameters, *, after=lambda update: None):
    """Three updates, of which the first may build constants."""
    for update in range(3):
        with phase(None):
            give_gradients(parameters)
        with phase(f"step {update + 1}" if update else None):
            optimizer.step()
            optimizer.zero_grad()
            after(update)


def ours(name, *, rate):
    cls, variants = OURS[name]
    variants = variants if rate == "number" else variants[:1] + variants[-1:]
    for settings, dtype in [(variant, torch.float32) for variant in variants] + [(variants[-1], torch.bfloat16)]:
        net = model(dtype)
        groups = (
            muon_groups(net, lr=0.02, adam_lr=1e-3, weight_decay=0.01) if issubclass(cls, Muon) else param_groups(net, weight_decay=0.01)
        )
        lr = torch.full((), 0.01, device=DEVICE) if rate == "tensor" else 0.01
        for group in groups:
            if rate == "tensor" or "lr" not in group:
                group["lr"] = lr
        steps(cls(groups, lr, **settings), list(net.parameters()))


def restored(name):
    """After `load_state_dict` of a state that lies on the device, as a checkpoint's does."""
    cls, variants = OURS[name]
    groups = (
        (lambda net: muon_groups(net, lr=0.02, adam_lr=1e-3, weight_decay=0.01))
        if issubclass(cls, Muon)
        else (lambda net: list(net.parameters()))
    )
    net, other = model(), model()
    before, after = cls(groups(net), **variants[-1]), cls(groups(other), **variants[-1])
    steps(before, list(net.parameters()))
    after.load_state_dict(before.state_dict())
    steps(after, list(other.parameters()))


def of_recipe(name):
    net = model()
    recipe = Recipe.from_dict({**RECIPE, "optimizer": {"name": name, **OF_RECIPES[name]}})
    optimizer = build_optimizer(net, recipe)
    steps(optimizer, list(net.parameters()), after=lambda update: set_lr(optimizer, 0.5**update))


def matrices():
    stack = torch.randn(3, 8, 16).to(DEVICE)
    with phase("Newton-Schulz"):
        for dtype in (torch.float32, torch.bfloat16):
            orthogonalise(stack.to(dtype))
            orthogonalise(stack[0].mT.to(dtype))


def rates(*, rate, momentum_correction=True):
    """A scheduler's, of an optimizer that takes rates that are tensors without reading them; torch.optim.SGD reads its own."""
    net = model()
    lr = torch.full((), 0.01, device=DEVICE) if rate == "tensor" else 0.01
    optimizer = LARS([{"params": [p]} for p in net.parameters()], lr, momentum=0.9)
    scheduler = ClockLR(optimizer, lambda clock: 0.9**clock.updates, global_batch=32, momentum_correction=momentum_correction)
    steps(optimizer, list(net.parameters()), after=lambda update: scheduler.step())
    assert abs(float(optimizer.param_groups[0]["lr"]) - 0.01 * 0.9**3) < 1e-8


def set_rates(*, rate):
    net = model()
    lr = torch.full((), 0.01, device=DEVICE) if rate == "tensor" else 0.01
    optimizer = LARS([{"params": [p]} for p in net.parameters()], lr, momentum=0.9)
    steps(optimizer, list(net.parameters()), after=lambda update: set_lr(optimizer, 0.5**update))
    assert abs(float(optimizer.param_groups[0]["lr"]) - 0.01 * 0.25) < 1e-8


CASES = {
    **{f"{name}, rate a {rate}": partial(ours, name, rate=rate) for name in OURS for rate in ("number", "tensor")},
    **{f"{name}, restored": partial(restored, name) for name in OURS},
    **{f"{name} of a recipe": partial(of_recipe, name) for name in OF_RECIPES},
    "Newton-Schulz": matrices,
    **{f"ClockLR, rate a {rate}": partial(rates, rate=rate) for rate in ("number", "tensor")},
    **{f"set_lr, rate a {rate}": partial(set_rates, rate=rate) for rate in ("number", "tensor")},
}
PLANTS = [
    ("LARS, rate a number", "optim.lars", "LARS.update"),
    ("LARS, rate a tensor", "optim.lars", "trust_ratio"),
    ("LARS, restored", "optim.base", "BaseOptimizer._complete"),
    ("LAMB, rate a number", "optim.lamb", "LAMB.update"),
    ("LAMB, rate a tensor", "optim.lamb", "trust_ratio"),
    ("LAMB, restored", "optim.adam", "corrections"),
    ("AdamP, rate a number", "optim.adamp", "AdamP.update"),
    ("AdamP, restored", "optim.projected", "projected_step"),
    ("SGDP, rate a number", "optim.sgdp", "SGDP.update"),
    ("SGDP, rate a tensor", "optim.projection", "radial"),
    ("Muon, rate a number", "optim.muon.muon", "Muon.update"),
    ("Muon, rate a tensor", "optim.muon.muon", "orthogonalise"),
    ("Newton-Schulz", "optim.muon.newton_schulz", "orthogonalise"),
    ("lars of a recipe", "optim.lars", "LARS.update"),
    ("sgd of a recipe", "schedules.clock_lr", "set_lr"),
    ("ClockLR, rate a tensor", "schedules.clock_lr", "ClockLR.step"),
    ("ClockLR, rate a number", "schedules.clock_lr", "ClockLR.get_lr"),
    ("set_lr, rate a tensor", "schedules.clock_lr", "set_lr"),
]
"""Case, module, and the function in which a reading of the device is planted."""
