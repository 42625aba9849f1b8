"""`fit` itself on the simulated device: what it waits for in an update, outside of its looks at the device.

A look is what follows a poll of the flags (here every third update; in a run every `POLL_S` seconds), an evaluation, and what a batch rule
reads before it decides. The first update may build constants.
"""

import tempfile
from functools import partial
from pathlib import Path

import torch
from tests.accelerator.optimizers import OF_RECIPES
from tests.accelerator.place import DEVICE, Log, Simulated, set_phase
from torch import nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import TensorDataset

from bigbatch import Recipe, fit
from bigbatch.tasks import Splits
from bigbatch.tasks.classification import Classification
from bigbatch.train import run as train_run
from bigbatch.train import trainer
from bigbatch.train.data import loader
from bigbatch.train.state.agreed_flags import AgreedFlags, Flags

UPDATES, BATCH, EVERY = 8, 32, 3
RECIPE = {
    "task": "small",
    "num_train_samples": 128,
    "optimizer": {"name": "sgd", **OF_RECIPES["sgd"]},
    "schedule": {"warmup": {"kind": "gradual", "epochs": 1}, "decay": {"kind": "cosine"}},
    "batch": {"global_batch": BATCH, "micro_batch": 16, "ghost_batch": 8},
    "budget": {"updates": UPDATES},
}


class Small(Classification):
    """Images of noise, a network with each kind of layer."""

    name = "small"

    def splits(self):
        chance = torch.Generator().manual_seed(0)
        x, y = torch.rand(192, 1, 8, 8, generator=chance), torch.randint(10, (192,), generator=chance)
        return Splits(*(TensorDataset(x[part], y[part]) for part in torch.arange(192).split([128, 32, 32])))

    def model(self):
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(144, 10))


class EveryThird(AgreedFlags):
    """The clock's place taken by a count."""

    polls = 0

    def poll(self, *, interrupted, save):
        self.polls += 1
        if self.polls % EVERY:
            return None
        set_phase(None)  # a look: until the next update
        return Flags(interrupted, save)


def watched(function, *, first):
    """Build the control as the loop does, and have it say when an update begins; the first in a session may build constants."""

    def built(*args, **kwargs):
        control = function(*args, **kwargs)
        before_update = control.before_update
        began = []

        def before(clock):
            set_phase(None)
            decision = before_update(clock)  # a rule may look here
            began.append(clock.updates)
            set_phase(f"update {clock.updates + 1}" if len(began) > first else None)
            return decision

        control.before_update = before
        return control

    return built


def looking(function):
    """An evaluation and its record are a look, and so is all that follows until the next update."""

    def look(*args, **kwargs):
        set_phase(None)
        return function(*args, **kwargs)

    return look


def run(changes=(), *, first=1, **options):
    """One run, its loop as it is but for that."""
    recipe = Recipe.from_dict(RECIPE).replace(dict(changes))
    replaced = [
        (train_run, "AgreedFlags", EveryThird),
        (trainer, "build_control", watched(trainer.build_control, first=first)),
        (train_run, "evaluate", looking(train_run.evaluate)),
    ]
    before, pins = [(module, name, getattr(module, name)) for module, name, _ in replaced], loader._pins
    settings = {"quiet": True, "evaluate_every": 1e9, "measure_test": False, "tensorboard": False} | options
    try:
        for module, name, value in replaced:
            setattr(module, name, value)
        loader._pins = lambda: False  # the simulated device has no pinned memory; copies that do not block are told by their flag
        result = fit(Small(), recipe, device=DEVICE, **settings)
        assert result.updates > first
    finally:
        set_phase(None)
        loader._pins = pins
        for module, name, value in before:
            setattr(module, name, value)


def optimizer(name):
    run({"optimizer": {"name": name, **OF_RECIPES[name]}, "optimizer.clip_norm": 1.0})


def resumed(name):
    """After a checkpoint; torch's own files know nothing of the simulated device, so that its tensors are moved as a GPU's would be."""
    save, load = torch.save, torch.load

    def load_to(*args, map_location=None, **kwargs):
        loaded = load(*args, map_location="cpu", **kwargs)
        moved = torch.device(map_location).type == DEVICE.type if map_location is not None else False
        return tree_map_only(torch.Tensor, lambda t: t.to(DEVICE), loaded) if moved else loaded

    if Simulated is not None:
        torch.load = load_to
        torch.save = lambda value, *args, **kwargs: save(tree_map_only(Simulated, lambda t: t.cpu(), value), *args, **kwargs)
    try:
        with tempfile.TemporaryDirectory() as folder:
            out, recipe = Path(folder) / "run", {"optimizer": {"name": name, **OF_RECIPES[name]}, "budget.updates": UPDATES}
            try:
                run(recipe, out=out, save_every_s=0.0, keep_checkpoints=True, evaluate_every=1.0)
            finally:
                if Log is not None:
                    Log.waits.clear()
            (out / "update-000000004.pt").replace(out / "last.pt")
            (out / "result.json").unlink()
            run(recipe, out=out, resume=True)
    finally:
        torch.save, torch.load = save, load


CASES = {
    **{f"fit, {name}": partial(optimizer, name) for name in OF_RECIPES},
    **{f"fit, {name} resumed": partial(resumed, name) for name in ("sgd", "adam", "lars", "lamb")},
    "fit, noise measured": partial(run, measure_noise=True),
    "fit, noise of layers, distance": partial(run, measure_noise="layers"),
    "fit, bfloat16": partial(run, {"precision": "bfloat16"}),
    "fit, one group": partial(run, {"batch.ghost_batch": "global", "batch.micro_batch": "auto"}),
    "fit, last update short": partial(run, {"budget": {"samples": 200}}),
    "fit, multiplicative noise": partial(run, {"batch.noise_batch": 8}),
    "fit, augmented": partial(run, {"augmentation": {"padding": 1, "flip": True}}),
    "fit, adversarial": partial(run, {"adversarial": {"eps": 0.01}}, first=2),
    "fit, batch grows": partial(run, {"batch.rule": {"kind": "adabatch", "every_epochs": 1.0, "batch_factor": 2.0}}, first=2),
    "fit, norm test": partial(run, {"batch.rule": {"kind": "norm_test", "every_updates": 3, "largest": 64}}, first=2),
    "fit, inner product": partial(run, {"batch.rule": {"kind": "inner_product_test", "every_updates": 3, "largest": 64}}, first=2),
}
PLANTS = [
    ("fit, sgd", "train.update.gradient_accumulation", "accumulate_gradients"),
    ("fit, sgd", "train.data.loader", "_converted"),
    ("fit, sgd", "schedules.clock_lr", "set_lr"),
    ("fit, sgd", "train.state.record", "Record.update"),
    ("fit, sgd", "train.display.progress", "Display.update"),
    ("fit, sgd", "train.control.control", "Control.after_update"),
    ("fit, sgd", "train.control.rate_source", "RateSource.factor"),
    ("fit, sgd", "train.update.batches", "UpdateBatches.of_update"),
    ("fit, sgd", "comm.protocol", "Comm.after_step"),
    ("fit, sgd", "layers.normalise_groups", "normalise_groups"),
    ("fit, lars", "optim.lars", "LARS.update"),
    ("fit, noise measured", "train.control.control", "Control.after_gradients"),
    ("fit, noise measured", "train.control.control", "Control.after_backward"),
    ("fit, multiplicative noise", "train.update.batches", "noise_factors"),
    ("fit, adversarial", "train.adversarial.training", "AdversarialPairs.of_update"),
    ("fit, augmented", "train.data.augmentation", "Views.of"),
]
