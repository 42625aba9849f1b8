"""A loop of Accelerate, on one process or under torchrun, and what it did as JSON.

`python -m tests.integrations.accelerate_run FILE PREPARED HOW`.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset, TensorDataset

import bigbatch
from bigbatch import UserError

RECIPE = """
num_train_samples = 40
optimizer = { name = "sgd", lr = 0.1, momentum = 0.9, clip_norm = 0.3 }
schedule = { warmup = { kind = "gradual", samples = 40 }, decay = { kind = "cosine" } }
batch = { global_batch = 16, micro_batch = 4 }
budget = { epochs = 3 }
"""


def recipe_of():
    return bigbatch.Recipe.from_toml(RECIPE)


def data_and_model():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    return TensorDataset(inputs, inputs.sum(1, keepdim=True)), model


def run(prepared, how="right", *, epochs=3):
    from accelerate import Accelerator, DataLoaderConfiguration

    from bigbatch.integrations.accelerate import AccelerateMonitor

    world = int(os.environ.get("WORLD_SIZE", 1))
    even = DataLoaderConfiguration(even_batches=how != "uneven")
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4 // world, dataloader_config=even)
    recipe, (data, model) = recipe_of(), data_and_model()
    if how == "uneven":  # the second process has two samples fewer in the last pass of an epoch
        data = Subset(data, range(38))
    if how == "global_batch":
        recipe = recipe.replace({"batch.global_batch": 4})
    optimizer = bigbatch.build_optimizer(model, recipe)
    scheduler = bigbatch.build_scheduler(optimizer, recipe)
    if how == "torch":
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1000)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, batch_size=4))
    if prepared:
        scheduler = accelerator.prepare(scheduler)
    monitor = AccelerateMonitor(accelerator, model, optimizer, scheduler, population=40)
    rates, inner = [], optimizer.optimizer
    inner.register_step_pre_hook(lambda *_: rates.append(inner.param_groups[0]["lr"]))
    for _ in range(epochs):
        for x, y in loader:
            with accelerator.accumulate(model):
                monitor.backward((model(x) - y).square().mean(), num_samples=len(x))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), recipe.optimizer.clip_norm)
                optimizer.step()
                if how != "never":
                    scheduler.step()
                optimizer.zero_grad()
    monitor.monitor.flush()
    clock = list(getattr(scheduler, "scheduler", scheduler).clock) if how != "torch" else []
    return {"rates": rates, "measured": monitor.state_dict()["measured"].tolist(), "clock": clock}


def joined():
    """Under torch's Join, which `join_uneven_inputs` is on GPUs: the schedule goes on, and measuring is refused."""
    from accelerate import Accelerator
    from torch.distributed.algorithms.join import Join

    from bigbatch.integrations.accelerate import AccelerateMonitor

    accelerator = Accelerator(cpu=True)
    recipe, (data, model) = recipe_of(), data_and_model()
    optimizer = bigbatch.build_optimizer(model, recipe)
    scheduler = bigbatch.build_scheduler(optimizer, recipe)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    assert isinstance(model, DistributedDataParallel)
    monitor, refused, rates = AccelerateMonitor(accelerator, model, optimizer, scheduler), "", []
    x, y = data[:8]
    with Join([model]):
        for number in range(3 + 2 * accelerator.process_index):
            loss = (model(x) - y).square().mean()
            if not number:
                try:
                    monitor.backward(loss, num_samples=8)
                except UserError as error:
                    refused = str(error)
            accelerator.backward(loss)
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return {"refused": refused, "rates": rates}


def main(file, prepared, how):
    torch.set_num_threads(1)
    try:
        found = joined() if how == "join" else run(prepared == "prepared", how)
    except UserError as error:
        found = {"refused": str(error)}
    Path(f"{file}.{torch.distributed.get_rank()}").write_text(json.dumps(found))
    torch.distributed.barrier()
    time.sleep(0.2)  # gloo's threads let go of their tensors
    torch.distributed.destroy_process_group()
    os._exit(0)  # all is written; gloo's threads, which others' hooks may still hold, abort an interpreter that ends with them


if __name__ == "__main__":
    main(*sys.argv[1:])
