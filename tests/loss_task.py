"""A task whose score is a loss in nats: lower is better, and no score is a share of samples."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from bigbatch import Recipe
from bigbatch.tasks import Metric, Splits

NATS = Metric("loss", "nats", "lower", margin=0.02)
RECIPE = Recipe.from_toml(
    """
    task = "tests.loss_task:Nats"
    num_train_samples = 256
    optimizer = { name = "sgd", lr = 0.1 }
    batch = { global_batch = 16, micro_batch = 16 }
    budget = { epochs = 3 }
    """
)


class Nats:
    """Two classes of noisy points; the score is the cross-entropy itself."""

    name, metric = "tests/nats", NATS

    def splits(self):
        chance = torch.Generator().manual_seed(0)
        inputs = torch.randn(512, 4, generator=chance)
        targets = (inputs[:, 0] + 0.3 * torch.randn(512, generator=chance) > 0).long()
        cuts = [slice(0, 256), slice(256, 384), slice(384, 512)]
        return Splits(*(TensorDataset(inputs[cut], targets[cut]) for cut in cuts))

    def model(self):
        return nn.Linear(4, 2)

    def losses(self, outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="none")

    def scores(self, outputs, targets):
        return self.losses(outputs, targets)
