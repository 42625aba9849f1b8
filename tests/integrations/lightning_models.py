"""Small models in Lightning, what a loop of our own measures on the same gradients, and the rates that a recipe asks for."""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bigbatch
from bigbatch import Recipe
from bigbatch.core.clock import Clock
from bigbatch.integrations.lightning import configure
from bigbatch.layers import convert_batch_norm
from bigbatch.noise.monitor import NoiseScaleMonitor, layers_of
from bigbatch.schedules.from_recipe import schedule_of
from bigbatch.tasks.models.gpt import GPT
from bigbatch.tasks.models.resnet8 import resnet8

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
CLIP, SIZE = 0.05, 96  # a norm that always clips; samples


def recipe_of(global_batch, **changes):
    changed = {"num_train_samples": SIZE, "batch.global_batch": global_batch, "optimizer.lr": 0.1, "budget.epochs": 4}
    clipped = {"optimizer.clip_norm": CLIP, "schedule.warmup.epochs": 1.0, "schedule.warmup.start_factor": 0.1}
    return Recipe.named("digits/mlp").replace({**changed, **clipped, **changes})


class Module(lightning.LightningModule):
    """Any model of inputs and targets; remembers the rate of each update."""

    def __init__(self, kind, recipe, dtype=torch.float64):
        super().__init__()
        self.model, self.recipe, self.kind, self.rates = model_of(kind), recipe, kind, []
        self.to(dtype)  # of a checkpoint in 64-true, which Lightning loads before it converts, and would round to single precision

    def training_step(self, batch):
        return loss_of(self.model, *batch)

    def configure_optimizers(self):
        return configure(self, self.recipe)

    def on_before_optimizer_step(self, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


def model_of(kind):
    torch.manual_seed(0)
    if kind == "gpt":
        return GPT(context=16, width=16, num_blocks=2, num_heads=2, vocab_size=32, tied=True)
    return resnet8(width=4, zero_init_last_gamma=False)


def loss_of(model, x, y):
    return nn.functional.cross_entropy(model(x).flatten(0, -2), y.flatten())


def data_of(kind):
    """Something to learn, so that there is a signal: a tenth of the tokens, or of a picture, is noise."""
    random = torch.Generator().manual_seed(1)
    if kind == "gpt":
        tokens = (torch.randint(32, (SIZE, 1), generator=random) + torch.arange(17)) % 32
        wrong = torch.rand(SIZE, 17, generator=random) < 0.1
        tokens = torch.where(wrong, torch.randint(32, (SIZE, 17), generator=random), tokens)
        return TensorDataset(tokens[:, :-1], tokens[:, 1:])
    labels = torch.arange(SIZE) % 10
    bands = (torch.arange(28).view(28, 1) // 3 == labels.view(-1, 1, 1, 1)).double().expand(SIZE, 1, 28, 28)
    return TensorDataset(bands + 0.1 * torch.rand(SIZE, 1, 28, 28, generator=random).double(), labels)


def rates_of(recipe, num_updates):
    schedule, lr = schedule_of(recipe), recipe.optimizer.lr
    b = recipe.batch.global_batch
    return [lr * schedule(Clock(n * b, n)) for n in range(num_updates)]


class Resumable(DataLoader):
    """In order; says where it stands, so that a run goes on in the middle of an epoch."""

    position = 0

    def __iter__(self):
        start = self.position
        for number, batch in enumerate(super().__iter__()):
            if number >= start:
                self.position = (number + 1) % len(self)
                yield batch

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def trained(module, callback, *, micro_batch=8, ckpt_path=None, callbacks=(), **settings):
    """The module after a fit in double precision; its weights are `module.weights`."""
    trainer = lightning.Trainer(
        **{**QUIET, "precision": "64-true", "gradient_clip_val": CLIP, "log_every_n_steps": 1, **settings}, callbacks=[callback, *callbacks]
    )
    trainer.fit(module, Resumable(data_of(module.kind), batch_size=micro_batch), ckpt_path=ckpt_path)
    module.weights = torch.cat([p.detach().flatten() for p in module.parameters()])
    return module


def own_loop(kind, recipe, updates, *, ghost_batch=None, passes=None):
    """A plain loop over the same groups of samples.

    Args:
        updates: For each, the indices of the samples of each pass.
        passes: What each update's losses are divided by; the number of its passes if left out.

    Returns:
        The monitor, the rates and the weights.
    """
    model, data = model_of(kind).double(), data_of(kind)
    convert_batch_norm(model, ghost_batch)
    monitor = NoiseScaleMonitor(model, parts=layers_of(model))
    optimizer = bigbatch.build_optimizer(model, recipe)
    scheduler = bigbatch.build_scheduler(optimizer, recipe)
    rates = []
    for groups in updates:
        number = passes or len(groups)
        for group in groups:
            x, y = (torch.stack(part) for part in zip(*(data[i] for i in group), strict=True))
            (loss_of(model, x, y) / number).backward()
            monitor.micro_batch(len(group), divisor=number * len(group))
        monitor.update()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        optimizer.zero_grad()
        scheduler.global_batch = sum(map(len, groups))
        scheduler.step()
    return monitor, rates, torch.cat([p.detach().flatten() for p in model.parameters()])


def in_order(epochs, micro_batch, passes):
    """The groups of each update, where samples come in order."""
    groups = [range(first, first + micro_batch) for first in range(0, SIZE, micro_batch)]
    return [groups[first : first + passes] for first in range(0, len(groups), passes)] * epochs
