"""Literal transcription of Wu, Johnson 2021, Section 3.1, for an `nn.Sequential`, batches of one size, groups of one size."""

import torch
from torch import nn


def precise_statistics(model, batches, group):
    """Mean and variance for each batch norm, by its index: E[mu_B] and E[mu_B^2 + s_B] - E[mu_B]^2."""
    means, squares = {}, {}
    for batch in batches:
        for x in batch.split(group):
            for index, layer in enumerate(model):
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    mu = x.mean((0, 2, 3))
                    s = ((x - mu[:, None, None]) ** 2).mean((0, 2, 3))
                    means.setdefault(index, []).append(mu)
                    squares.setdefault(index, []).append(mu**2 + s)
                    x = (x - mu[:, None, None]) / torch.sqrt(s + layer.eps)[:, None, None]
                    x = x * layer.weight[:, None, None] + layer.bias[:, None, None]
                else:
                    x = layer(x)
    return {i: (sum(means[i]) / len(means[i]), sum(squares[i]) / len(squares[i]) - (sum(means[i]) / len(means[i])) ** 2) for i in means}
