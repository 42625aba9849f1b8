"""A language model of your own: ragged sequences, padded by `collate`, and a loss in nats per token however an update is cut.

python examples/own_language_model.py                 (lines of Python's own documentation, letter by letter)
"""

from pydoc_data.topics import topics

import torch
from torch import nn

import bigbatch
from bigbatch.tasks import Metric, Splits

PADDING = -100
RECIPE = """
num_train_samples = 1000
optimizer = { name = "adamw", lr = 0.03 }
schedule = { warmup = { kind = "gradual", updates = 10 }, decay = { kind = "cosine" } }
batch = { global_batch = 32, micro_batch = 16 }
budget = { tokens = 100_000, tokens_per_sample = 50 }
"""


class Letters(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(128, 32), nn.LSTM(32, 64, batch_first=True), nn.Linear(64, 128)

    def forward(self, ids):
        return self.head(self.lstm(self.embed(ids))[0])


class Documentation:
    name, metric = "documentation", Metric("loss", "nats per letter", "lower", margin=0.02)
    tokens_per_sample = "weights"  # are numbers of letters: noise scales are reported in letters too

    def splits(self):
        lines = [line.strip() for text in topics.values() for line in text.splitlines() if len(line.strip()) > 1 and line.isascii()]
        samples = [torch.tensor(list(line.encode())) for line in lines[:1200]]
        return Splits(samples[:1000], samples[1000:1100], samples[1100:])  # anything with a length and numbered items

    def collate(self, samples):
        padded = nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=PADDING)
        return {"ids": padded[:, :-1].clamp(min=0)}, padded[:, 1:].contiguous()  # the model's keywords, and the letters to predict

    def model(self):
        return Letters()

    def weights(self, targets):
        return (targets != PADDING).sum(1)  # of each line, the letters that are predicted

    def losses(self, outputs, targets):
        return nn.functional.cross_entropy(outputs.transpose(1, 2), targets, ignore_index=PADDING, reduction="none").sum(1)

    scores = losses


if __name__ == "__main__":
    print(bigbatch.fit(Documentation(), bigbatch.Recipe.from_toml(RECIPE), quiet=True))
