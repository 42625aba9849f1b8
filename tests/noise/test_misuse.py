"""What a loop can do wrong with a monitor is said, and what it measured is not forgotten."""

import io
import warnings

import pytest
import torch
from torch import nn

from bigbatch.core.checks import UserError
from bigbatch.noise import NoiseScaleMonitor

CLIP, ZERO, SCALE, REPLACE = "clipped", "zeroed", "scaled", "replaced"


def passes(model, monitor, num=4, seed=0):
    random = torch.Generator().manual_seed(seed)
    for _ in range(num):
        x = torch.randn(16, 20, generator=random)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        (loss / num).backward()
        monitor.micro_batch(16, divisor=num * 16)


@pytest.mark.parametrize("what", [CLIP, ZERO, SCALE, REPLACE])
def test_gradients_that_were_changed_before_update_are_refused(what):
    """After clipping "22 [21, 23]" became "no signal", in silence."""
    torch.manual_seed(0)
    model = nn.Linear(20, 1)
    monitor = NoiseScaleMonitor(model)
    passes(model, monitor)
    if what == CLIP:
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    elif what == ZERO:
        model.zero_grad()
    elif what == SCALE:
        model.bias.grad.div_(4)
    else:
        model.weight.grad = model.weight.grad * 0.5
    with pytest.raises(UserError, match="was changed between micro_batch\\(\\) and update\\(\\).*before clipping.*Transformers"):
        monitor.update()


def test_the_right_order_raises_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 4), nn.ReLU(), nn.Linear(4, 1))
    model.append(nn.Linear(3, 3))  # never used
    model.forward = lambda x: model[2](model[1](model[0](x)))
    optimizer, monitor = torch.optim.SGD(model.parameters(), lr=0.01), NoiseScaleMonitor(model)
    for step in range(5):
        passes(model, monitor, seed=step)
        monitor.update()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=step % 2 == 0)
    assert monitor.estimate().num_updates == 5


def test_updates_of_one_pass_are_told_at_the_third():
    """Before, at the end of training."""
    model = nn.Linear(20, 1)
    monitor = NoiseScaleMonitor(model)
    for step in range(6):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            passes(model, monitor, num=1)
            monitor.update()
        model.zero_grad()
        assert [str(w.message)[:35] for w in caught] == (["three updates of one backward pass "] if step == 2 else [])


@pytest.mark.parametrize("parts", [False, True])
def test_a_resume_goes_on_from_what_was_measured(parts):
    torch.manual_seed(0)
    model = nn.Linear(20, 1)
    chosen = {"weight": [model.weight]} if parts else None
    whole, first = NoiseScaleMonitor(model, parts=chosen), NoiseScaleMonitor(model, parts=chosen)
    for step in range(12):
        model.zero_grad()
        random = torch.Generator().manual_seed(step)
        for _ in range(4):
            x = torch.randn(16, 20, generator=random)
            ((model(x) - x.sum(1, keepdim=True)).square().mean() / 4).backward()
            whole.micro_batch(16, divisor=64)
            first.micro_batch(16, divisor=64)
        whole.update()
        first.update()
        if step == 7:
            file = io.BytesIO()
            torch.save(first.state_dict(), file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
            first.close()
            first = NoiseScaleMonitor(model, parts=chosen)
            first.load_state_dict(state)
    assert first.estimate() == whole.estimate()
    if parts:
        assert first.estimate("weight") == whole.estimate("weight")
        with pytest.raises(UserError, match="were measured before"):
            NoiseScaleMonitor(model).load_state_dict(state)
    NoiseScaleMonitor(model).load_state_dict({"direction": None})  # from before estimates were saved
