"""Ghost batch norm in a model of yours: the statistics stay those of 32 samples, however large the batch. No trainer.

python examples/ghost_batches_in_your_own_model.py
"""

import torch
from torch import nn

from bigbatch.layers import convert_batch_norm

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
images = torch.randn(256, 3, 16, 16)
model(images)  # sizes the last layer

convert_batch_norm(model, ghost_batch=32)
print(model[1])
together = model(images)
apart = torch.cat([model(piece) for piece in images.split(32)])
print("one pass of 256 equals eight of 32:", torch.allclose(together, apart, atol=1e-5))
print("evaluation takes any batch:", model.eval()(images[:5]).shape)
