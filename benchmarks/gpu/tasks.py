"""Tasks to time on a machine without data: the shipped ones on images of noise, and a transformer of 50 M parameters on random tokens."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from bigbatch import Recipe
from bigbatch.tasks import Splits, load_task
from bigbatch.tasks.classification import Classification


class Shipped(Classification):
    """A shipped task's model; images of the shape of its own."""

    def __init__(self, name, *, num_samples=55_000):
        self.name, self._task, self._num_samples = name, load_task(name), num_samples

    def splits(self):
        chance = torch.Generator().manual_seed(0)
        n = self._num_samples
        x, y = torch.randn(n + 20, 1, 28, 28, generator=chance), torch.randint(10, (n + 20,), generator=chance)
        return Splits(*(TensorDataset(x[part], y[part]) for part in torch.arange(n + 20).split([n, 10, 10])))

    def model(self, **options):
        return self._task.model(**options)


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, length, width))
        return x + self.mlp(self.norm2(x))


class Language(nn.Module):
    """Tokens (n, length) to logits (n, length, vocabulary)."""

    def __init__(self, width, layers, length, vocabulary):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Parameter(torch.zeros(length, width))
        self.blocks = nn.Sequential(*(Block(width, width // 64) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.tokens(x) + self.places)))


class Transformer:
    """The next token, of random ones: 50 M parameters unless it is small."""

    name, metric = "transformer", "accuracy"

    def __init__(self, *, small):
        self.shape, self.vocabulary, self.num_samples = ((64, 1, 8), 50, 64) if small else ((512, 12, 256), 12_000, 4096)

    def splits(self):
        tokens = torch.randint(self.vocabulary, (self.num_samples + 8, self.shape[2] + 1), generator=torch.Generator().manual_seed(0))
        sets = [TensorDataset(t[:, :-1].contiguous(), t[:, 1:].contiguous()) for t in tokens.split([self.num_samples, 4, 4])]
        return Splits(*sets)

    def model(self):
        torch.manual_seed(0)
        return Language(*self.shape, self.vocabulary)

    def losses(self, outputs, targets):
        return F.cross_entropy(outputs.float().flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape).mean(1)

    def scores(self, outputs, targets):
        return (outputs.argmax(-1) == targets).float().mean(1)


def transformer_recipe(task):
    return Recipe.from_dict(
        {
            "task": task.name,
            "num_train_samples": task.num_samples,
            "precision": "float32" if task.shape[1] == 1 else "bfloat16",
            "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
            "schedule": {"warmup": {"kind": "none"}, "decay": {"kind": "cosine"}},
            "batch": {"global_batch": 32, "micro_batch": 32},
            "budget": {"updates": 10},
        }
    )
