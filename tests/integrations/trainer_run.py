"""A run of Transformers' Trainer with the callback, and what it did as JSON.

`python -m tests.integrations.trainer_run KIND FILE ddp`, resumed, rule, fsdp or unlabelled (a pass of the second process), under torchrun.
"""

import json
import os
import sys
import time
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
GROWING = {
    "num_train_samples": 120,
    "optimizer.lr": 1e-3,
    "batch": {"global_batch": 16, "micro_batch": 4, "rule": {"kind": "noise_scale", "largest": 64, "multiple_of": 8, "every_updates": 3}},
    "budget.epochs": 6,
}
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


def shard(trainer):
    """Accelerate turns FSDP on for GPUs alone, and takes DistributedDataParallel on CPUs without a word: say that this is one."""
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = trainer.accelerator.state
    state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    state.fsdp_plugin.set_auto_wrap_policy(trainer.model)
    trainer.is_fsdp_enabled = True


def main(kind, file, how):
    torch.set_num_threads(1)
    folder, settings = Path(file).parent, {"ddp_backend": "gloo"}
    if how == "fsdp":
        settings |= {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}}
    elif how == "unlabelled":
        settings["data"] = tokens()
        settings["data"].columns["labels"][4:8] = -100
    elif how != "ddp":
        settings |= {"save_strategy": "steps", "save_steps": 6}
    if how == "rule":
        settings |= {"recipe": recipe_of(GROWING), "data": tokens(120)}
    trainer, callback = trainer_of(kind, folder, layers=True, **settings)
    if how == "fsdp":
        shard(trainer)
    trainer.train()
    assert any(isinstance(p, DTensor) for p in trainer.model.parameters()) == (how == "fsdp")
    found = facts(trainer, callback)
    found["of_all"] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(
        found["of_all"], [found["clock"], [entry["learning_rate"] for entry in found["logs"]], found["weights"]]
    )
    if how in ("resumed", "rule"):
        trainer, callback = trainer_of(kind, folder, layers=True, **settings)
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-6"))
        again = facts(trainer, callback)
        for name in ("weights", "measured"):
            assert repr(again[name]) == repr(found[name]), name
    if trainer.is_world_process_zero():
        Path(file).write_text(json.dumps(found))
    torch.distributed.barrier()
    time.sleep(0.2)  # gloo's threads let go of their tensors
    torch.distributed.destroy_process_group()
    os._exit(0)  # all is written; gloo's threads, which others' hooks may still hold, abort an interpreter that ends with them


if __name__ == "__main__":
    main(*sys.argv[1:])
