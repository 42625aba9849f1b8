"""A run of Transformers' Trainer with the callback, and what it did as JSON.

`python -m tests.integrations.trainer_run KIND FILE ddp` (or fsdp), under torchrun.
"""

import json
import sys
from pathlib import Path

import torch
from tests.integrations.models import gpt2, images, resnet, tokens
from torch.distributed.tensor import DTensor

import bigbatch

RECIPE = """
num_train_samples = 40
optimizer = { name = "adamw", lr = 3e-3, clip_norm = 0.3, weight_decay = 0.1, decay_norms_and_biases = false }
schedule = { warmup = { kind = "gradual", samples = 40 }, decay = { kind = "cosine" } }
batch = { global_batch = 16, micro_batch = 4 }
budget = { epochs = 3 }
"""
KINDS = {"gpt2": (gpt2, tokens), "resnet": (resnet, images)}


def recipe_of(changes=()):
    return bigbatch.Recipe.from_toml(RECIPE).replace(dict(changes))


def trainer_of(kind, folder, *, recipe=None, layers=False, data=None, model=None, **settings):
    from transformers import Trainer, TrainingArguments

    from bigbatch.integrations.transformers import BigBatchCallback, build, training_arguments

    recipe = recipe or recipe_of()
    make_model, make_data = KINDS[kind]
    model = model or make_model()
    settings = {"train_sampling_strategy": "sequential", "save_strategy": "no", **settings}
    plain = {"use_cpu": True, "report_to": "none", "logging_steps": 1, "disable_tqdm": True, "log_level": "error"}
    arguments = TrainingArguments(str(folder), **training_arguments(recipe).keywords, **plain, **settings)
    trainer = Trainer(model, arguments, train_dataset=data or make_data(), optimizers=build(model, recipe))
    callback = BigBatchCallback(trainer, layers=layers)
    trainer.add_callback(callback)
    return trainer, callback


def facts(trainer, callback):
    """Plain values: what was logged at each update, each update's signal and noise, and a sum over all weights."""
    logs = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
    measured = callback.monitor.state_dict()["measured"]
    full = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in trainer.model.parameters()]
    weights = torch.cat([p.detach().flatten().double() for p in full])
    clock = list(trainer.lr_scheduler.clock)
    return {"logs": logs, "measured": measured.tolist(), "weights": weights.tolist(), "clock": clock}


def main(kind, file, fsdp):
    torch.set_num_threads(1)
    sharded = {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}} if fsdp == "fsdp" else {}
    trainer, callback = trainer_of(kind, Path(file).parent, layers=True, ddp_backend="gloo", **sharded)
    trainer.train()
    assert all(isinstance(p, DTensor) for p in trainer.model.parameters()) == (fsdp == "fsdp")
    found = facts(trainer, callback)
    if trainer.is_world_process_zero():
        Path(file).write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
