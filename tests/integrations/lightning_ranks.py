"""One process of two under Lightning's DistributedDataParallel: a whole run, and one that is stopped after five updates and resumed."""

import json
import os
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import lightning  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.strategies import DDPStrategy  # noqa: E402
from tests.distributed.ranks import leave  # noqa: E402
from tests.integrations.lightning_models import (  # noqa: E402
    CLIP,
    QUIET,
    Module,
    Resumable,
    data_of,
    recipe_of,
)
from torch.utils.data import DistributedSampler  # noqa: E402

from bigbatch.integrations.lightning import BigBatch  # noqa: E402


def trained(kind, *, ckpt_path=None, sampler=None, **settings):
    callback, module = BigBatch(every_updates=2), Module(kind, recipe_of(32))
    callbacks = [callback, *settings.pop("callbacks", [])]
    strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=False)
    trainer = lightning.Trainer(
        **{**QUIET, "precision": "64-true", "gradient_clip_val": CLIP, "log_every_n_steps": 1, "max_epochs": 4, **settings},
        accumulate_grad_batches=2, strategy=strategy, devices=2, callbacks=callbacks, use_distributed_sampler=False,
    )  # fmt: skip
    data = data_of(kind)
    sampler = sampler or DistributedSampler(data, dist.get_world_size(), dist.get_rank(), shuffle=False)
    trainer.fit(module, Resumable(data, batch_size=8, sampler=sampler), ckpt_path=ckpt_path)
    return callback, module


def told(callback, module, rates):
    e, weights = callback.monitor.estimate(), torch.cat([p.detach().flatten() for p in module.parameters()])
    noise = [e.signal, e.noise, e.noise_scale, e.lower, e.upper]
    return {"noise": noise, "rates": rates, "weights": [weights.sum().item(), weights.square().sum().item()]}


def main():
    kind, folder = sys.argv[1], Path(sys.argv[2])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # which nothing listens at: processes meet at a file
    dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=rank, world_size=world)
    whole = trained(kind)
    save = ModelCheckpoint(folder, filename="at", every_n_train_steps=5, save_top_k=-1)
    _, first = trained(kind, max_steps=5, enable_checkpointing=True, callbacks=[save])
    again = trained(kind, ckpt_path=folder / "at.ckpt")
    results = {"whole": told(*whole, whole[1].rates), "resumed": told(*again, first.rates + again[1].rates)}
    callback, module = trained(kind, sampler=range(rank, 95, 2))
    results["uneven"] = {"clock": list(callback.clock), "rates": module.rates}
    print(json.dumps(results))
    leave()


if __name__ == "__main__":
    main()
