"""A network in integers only: trained in floats, rounded to 8 bits, saved, run by numpy alone. No trainer.

Its float twin is the same rounded network as torch computes it in float64, with batch norm in floats: equal in every logit.

python examples/integer_only_network.py
"""

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

from bigbatch.layers import float_twin, quantize_batch_norm, save_integers
from bigbatch.tasks.data.digits import read_digits

torch.manual_seed(0)
images, labels = read_digits()  # real grey images of 8 x 8 pixels, integers 0..16
images = images.unsqueeze(1).double()
model = nn.Sequential(
    *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)),
)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(150):
    index = torch.randint(0, 1300, (128,))
    nn.functional.cross_entropy(model(images[index].float()), labels[index]).backward()
    optimizer.step()
    optimizer.zero_grad()
twin = float_twin(model, images[:1300])
network = quantize_batch_norm(twin, lo=0, hi=16)
print(network)
save_integers(network, "network.npz")


def infer(file, x):
    """Integers alone, by numpy alone: multiply, add, shift, clip."""
    layers = {}
    for name, values in np.load(file).items():  # "layer.Kind.field"
        layers.setdefault(name.rpartition(".")[0], {})[name.rpartition(".")[2]] = values.astype(np.int64)
    for kind, f in ((layer.partition(".")[2], fields) for layer, fields in layers.items()):
        if kind == "Conv2d":
            padded = np.pad(x, [(0, 0), (0, 0), *([p, p] for p in f["padding"])])
            x = np.einsum("nchwij,ocij->nohw", sliding_window_view(padded, f["weight"].shape[2:], (2, 3)), f["weight"])
        elif kind == "QuantizedBatchNorm":
            A, B = (f[k].reshape(-1, *[1] * (x.ndim - 2)) for k in "AB")
            x = np.clip(A * x + B >> f["K"], 0, f["top"])
        elif kind == "MaxPool2d":
            x = sliding_window_view(x, (2, 2), (2, 3))[:, :, ::2, ::2].max((4, 5))
        elif kind == "Flatten":
            x = x.reshape(len(x), -1)
        elif kind == "Linear":
            x = x @ f["weight"].T + f["bias"]
    return x


logits = infer("network.npz", images.numpy().astype(np.int64))
for name, outputs in (("floats", model.eval()(images.float()).detach().numpy()), ("integers", logits)):
    print(f"test accuracy in {name}: {100 * (outputs.argmax(1) == labels.numpy())[1300:].mean():.2f} %")
print("equal to the twin in every logit:", np.array_equal(logits, twin(images).detach()))
