"""Tasks whose batches are no pairs of tensors: ragged sequences with a loss per token, dicts with their labels, tuples, nested ones."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from bigbatch import Recipe
from bigbatch.tasks import Metric, Splits

IGNORED = -100
NATS = Metric("loss", "nats per token", "lower", margin=0.02)
RECIPE = Recipe.from_toml(
    """
    task = "tests.structured_tasks:Words"
    num_train_samples = 48
    precision = "float64"
    optimizer = { name = "sgd", lr = 0.5, momentum = 0.9 }
    batch = { global_batch = 16, micro_batch = 16 }
    budget = { updates = 7 }
    """
)


class Sequences(Dataset):
    """Of 2 to 12 tokens, and every third of two."""

    def __init__(self, number, seed):
        chance = torch.Generator().manual_seed(seed)
        lengths = [2 if i % 3 == 0 else int(torch.randint(2, 13, (), generator=chance)) for i in range(number)]
        self.tokens = [torch.randint(7, (length,), generator=chance) for length in lengths]

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, i):
        return self.tokens[i]


class MeanSoFar(nn.Module):
    """Next token from the mean embedding of those up to here: padding behind a token changes nothing."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 5), nn.Linear(5, 7)

    def forward(self, ids, mask):
        embedded = self.embed(ids) * mask.unsqueeze(-1)
        return self.head(embedded.cumsum(1) / mask.cumsum(1).unsqueeze(-1))


class Words:
    """A language model; a sample counts by its number of predicted tokens."""

    name, metric = "tests/words", NATS

    def splits(self):
        return Splits(Sequences(48, 0), Sequences(13, 1), Sequences(9, 2))

    def collate(self, samples):
        padded = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=IGNORED)
        ids, targets = padded[:, :-1], padded[:, 1:]
        return {"ids": ids.clamp(min=0), "mask": (ids != IGNORED).double()}, targets.contiguous()

    def model(self):
        return MeanSoFar()

    def losses(self, outputs, targets):
        return F.cross_entropy(outputs.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none").sum(1)

    def scores(self, outputs, targets):
        return ((outputs.argmax(-1) == targets) & (targets != IGNORED)).sum(1).double()

    def weights(self, targets):
        return (targets != IGNORED).sum(1)


class MeanOfMeans(Words):
    """The classic fault: each micro-batch's loss is the mean over its own tokens, and the update's the mean of these."""

    weights = None

    def losses(self, outputs, targets):
        return super().losses(outputs, targets) / super().weights(targets).double().mean()

    def scores(self, outputs, targets):
        return super().losses(outputs, targets)


class Points(Dataset):
    """One sample in several shapes, by `form`."""

    def __init__(self, start, stop, form):
        chance = torch.Generator().manual_seed(3)
        self.a, self.b = torch.randn(80, 4, generator=chance).double(), torch.randn(80, 4, generator=chance).double()
        self.labels = (self.a[:, 0] * self.b[:, 1] > 0).long()
        self.start, self.stop, self.form = start, stop, form

    def __len__(self):
        return self.stop - self.start

    def __getitem__(self, i):
        return self.form(self.a[self.start + i], self.b[self.start + i], self.labels[self.start + i])


def as_dict(a, b, label):
    return {"a": a, "b": b, "labels": label, "id": "text"}


def as_tuple(a, b, label):
    return (a, b), label


def nested(a, b, label):
    return {"points": [a, {"b": b}]}, (label, {"again": label})


def as_pair(a, b, label):
    return torch.cat([a, b]), label


class TwoArguments(nn.Module):
    """Takes two tensors, or one that joins them, and like models of Transformers what else a dict holds."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 2)

    def forward(self, a, b=None, labels=None, id=None):
        return self.net(a if b is None else torch.cat([a, b], 1))


class Plain:
    """The same points as pairs of one tensor and a label; the others differ from it in form alone."""

    name, metric, form = "tests/points", "accuracy", staticmethod(as_pair)

    def splits(self):
        return Splits(*(Points(start, stop, self.form) for start, stop in ((0, 48), (48, 64), (64, 80))))

    def model(self):
        return TwoArguments()

    def label(self, targets):
        return targets

    def losses(self, outputs, targets):
        return F.cross_entropy(outputs, self.label(targets), reduction="none")

    def scores(self, outputs, targets):
        return (outputs.argmax(1) == self.label(targets)).double()


class Dicts(Plain):
    form = staticmethod(as_dict)

    def label(self, targets):
        return targets["labels"]


class Tuples(Plain):
    form = staticmethod(as_tuple)


class Nested(Plain):
    form = staticmethod(nested)

    def outputs(self, model, inputs):
        first, rest = inputs["points"]
        return model(first, rest["b"])

    def label(self, targets):
        return targets[0]


class InMemory(Plain):
    """Three tensors in memory: no pair, so inputs and targets are the same three."""

    def splits(self):
        every = Points(0, 80, None)
        parts = [slice(0, 48), slice(48, 64), slice(64, 80)]
        return Splits(*(TensorDataset(every.a[part], every.b[part], every.labels[part]) for part in parts))

    def label(self, targets):
        return targets[2]


class InMemoryPair(Plain):
    def splits(self):
        every = Points(0, 80, None)
        parts = [slice(0, 48), slice(48, 64), slice(64, 80)]
        return Splits(*(TensorDataset(torch.cat([every.a[part], every.b[part]], 1), every.labels[part]) for part in parts))


class OfAnotherKeyword(Dicts):
    def model(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nn.Linear(4, 2)

            def forward(self, a, labels=None):
                return self.net(a)

        return Net()


class Stream(IterableDataset):
    """The same sequences, one after the other."""

    def __init__(self, sequences, said=None):
        self.sequences, self.said = sequences, said

    def __len__(self):
        return self.said or len(self.sequences)

    def __iter__(self):
        return iter(self.sequences.tokens)


class WordStream(Words):
    def splits(self):
        train, validation, test = super().splits()
        return Splits(Stream(train), Stream(validation), test)


class Endless(Words):
    class Unknown(IterableDataset):
        def __iter__(self):
            return iter(Sequences(48, 0).tokens)

    def splits(self):
        return super().splits()._replace(train=self.Unknown())


class TooShort(Words):
    def splits(self):
        return super().splits()._replace(train=Stream(Sequences(40, 0), said=48))
