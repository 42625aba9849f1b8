"""The noise scale of a small GPT on bytes, against the gradient of every sequence by itself."""

import pytest
import torch

from bigbatch.noise import NoiseScaleMonitor, norm_parameters
from bigbatch.tasks.data.text import split_text
from bigbatch.tasks.models import GPT
from bigbatch.tasks.text import Text

CONTEXT, POPULATION = 16, 96


@pytest.fixture(scope="module")
def trained():
    """A GPT in float64 after 40 updates on a text of words, and the sequences that it is measured on."""
    random = torch.Generator().manual_seed(3)
    words = [b"in ", b"the ", b"beginning ", b"was ", b"word ", b"and ", b"with "]
    text = b"".join(words[i] for i in torch.randint(len(words), (2500,), generator=random).tolist())
    x, y = split_text(torch.frombuffer(bytearray(text), dtype=torch.uint8), context=CONTEXT).train.tensors
    torch.manual_seed(0)
    model = GPT(context=CONTEXT, width=16, num_blocks=2, num_heads=2, vocab_size=128, tied=True).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for pick in torch.randperm(len(x), generator=random)[: 40 * 8].split(8):
        Text().losses(model(x[pick]), y[pick]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, x[:POPULATION], y[:POPULATION]


def exact(model, x, y, parameters):
    """|G|^2 and tr(S) of the sequences, from one backward pass each."""
    each = []
    for i in range(len(y)):
        of_one = torch.autograd.grad(Text().losses(model(x[i : i + 1]), y[i : i + 1]).sum(), parameters)
        each.append(torch.cat([g.flatten() for g in of_one]))
    gradients = torch.stack(each)
    return float(gradients.mean(0).square().sum()), float(gradients.var(0, correction=1).sum())


@pytest.mark.parametrize("part", ["all", "norms"])
def test_unbiased_within_standard_errors(trained, part):
    """300 updates of 24 sequences drawn without replacement, in four micro-batches: signal and noise are right on the mean."""
    model, x, y = trained
    parameters = list(model.parameters()) if part == "all" else norm_parameters(model)
    truth = exact(model, x, y, parameters)
    monitor = NoiseScaleMonitor(model, only=None if part == "all" else parameters, population=POPULATION)
    random = torch.Generator().manual_seed(5)
    for _ in range(300):
        update = torch.randperm(POPULATION, generator=random)[:24]
        for piece in update.split([3, 9, 6, 6]):
            (Text().losses(model(x[piece]), y[piece]).sum() / 24).backward()
            monitor.micro_batch(len(piece), divisor=24)
        monitor.update()
        model.zero_grad()
    monitor.close()
    measured = torch.tensor([tuple(m.parts["all"]) for m in monitor.flush()], dtype=torch.float64)
    for values, value, name in zip(measured.unbind(1), truth, ("signal", "noise"), strict=True):
        error = float(values.std()) / len(values) ** 0.5
        assert abs(float(values.mean()) - value) < 4 * error, f"{name}: {values.mean():.4g}, exact {value:.4g}"
    estimate = monitor.estimate()
    assert estimate.noise_scale == pytest.approx(truth[1] / truth[0], rel=0.1)
