"""A large batch in Lightning: planned rate and warm-up, ghost batch norm, and the noise scale. Lines of bigbatch are marked.

python examples/lightning_trainer.py
"""

import warnings

import lightning
from torch import nn
from torch.utils.data import DataLoader

import bigbatch
from bigbatch.integrations.lightning import BigBatch, configure  # bigbatch
from bigbatch.tasks import load_task

warnings.filterwarnings("ignore", module="lightning|typing_extensions")  # few workers, and what it uses of torch
train, validation, _ = load_task("digits/mlp").splits()
recipe = bigbatch.plan(bigbatch.Recipe.named("digits/mlp"), global_batch=256, rule="legw").recipe  # bigbatch


class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch):
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def configure_optimizers(self):
        return configure(self, recipe)  # bigbatch


net, callback = Net(), BigBatch(ghost_batch=32, every_updates=20)  # bigbatch
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = lightning.Trainer(max_epochs=20, accumulate_grad_batches=4, callbacks=[callback], accelerator="cpu", **quiet)
trainer.fit(net, DataLoader(train, batch_size=64, shuffle=True, drop_last=True))

right = net.eval().layers(validation.tensors[0]).argmax(1) == validation.tensors[1]
print(f"validation accuracy {100 * right.float().mean():.1f} %, noise scale {callback.monitor.estimate(last=100)}")
