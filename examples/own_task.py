"""A task of your own: data, model, loss per sample, score per sample. Trained and scaled like a shipped one.

    bigbatch train own_task:Wine --recipe wine.toml          (in this folder; the recipe is written by running this file)
    bigbatch scale own_task:Wine --recipe wine.toml --to 64

python examples/own_task.py                                  (pip install scikit-learn, for its data)
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_wine
from torch import nn
from torch.utils.data import TensorDataset

import bigbatch
from bigbatch.tasks import Splits

RECIPE = """
task = "own_task:Wine"
num_train_samples = 100
optimizer = { name = "sgd", lr = 0.05, momentum = 0.9 }
schedule = { warmup = { kind = "gradual", epochs = 1 }, decay = { kind = "cosine" } }
batch = { global_batch = 8 }
budget = { epochs = 20 }
"""


class Wine:
    """178 Italian wines, 13 chemical measurements, 3 growers."""

    name, metric = "wine", "accuracy"  # a share of samples; a loss: Metric("loss", "nats", "lower", margin=0.01)

    def splits(self):
        x, y = (torch.from_numpy(a) for a in load_wine(return_X_y=True))
        x = ((x - x.mean(0)) / x.std(0)).float()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        return Splits(*(TensorDataset(x[part], y[part]) for part in order.split([100, 28, 50])))

    def model(self, hidden=32):
        return nn.Sequential(nn.Linear(13, hidden), nn.ReLU(), nn.Linear(hidden, 3))

    def losses(self, outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="none")  # one per sample: the trainer owns the mean

    def scores(self, outputs, targets):
        return (outputs.argmax(1) == targets).float()


if __name__ == "__main__":
    Path("wine.toml").write_text(RECIPE)
    print(bigbatch.fit(Wine(), bigbatch.Recipe.from_toml(RECIPE), quiet=True))
