"""The noise scale of norm layers alone, beside that of the whole."""

import pytest
import torch
from torch import nn

from bigbatch.core.checks import UserError
from bigbatch.noise import NoiseScaleMonitor, norm_parameters
from bigbatch.noise.norm_layers import slope


class LlamaRMSNorm(nn.Module):
    """As Transformers names it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.weight * x / x.square().mean(-1, keepdim=True).sqrt()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6), LlamaRMSNorm(), nn.Linear(6, 1)).double()


def run(model, *monitors, updates=1):
    random = torch.Generator().manual_seed(1)
    for _ in range(updates):
        for x in torch.randn(32, 6, dtype=torch.float64, generator=random).split([4, 8, 20]):
            (model(x) - x[:, :1]).square().sum().div(32).backward()
            for monitor in monitors:
                monitor.micro_batch(len(x), divisor=32)
        for monitor in monitors:
            monitor.update()
        model.zero_grad()


def test_norm_layers_of_torch_and_of_others():
    model = net()
    assert [id(p) for p in norm_parameters(model)] == [id(p) for p in (model[1].weight, model[1].bias, model[3].weight)]
    model[1].requires_grad_(False)
    assert [id(p) for p in norm_parameters(model)] == [id(model[3].weight)]
    model[3].requires_grad_(False)
    with pytest.raises(UserError, match="Sequential: has no norm layers that are trained.*measure the whole"):
        norm_parameters(model)


def test_alone_is_what_the_whole_measures_of_that_part():
    model = net()
    whole, alone = NoiseScaleMonitor(model, parts={"norms": norm_parameters(model)}), NoiseScaleMonitor(model, only=norm_parameters(model))
    run(model, whole, alone, updates=3)
    assert [m.parts["all"] for m in alone.flush()] == [m.parts["norms"] for m in whole.flush()]
    assert alone.estimate().noise > 0


def test_alone_has_hooks_on_norm_layers_alone():
    model = net()
    NoiseScaleMonitor(model, only=norm_parameters(model))
    assert [name for name, p in model.named_parameters() if p._backward_hooks] == ["1.weight", "1.bias", "3.weight"]


def test_alone_and_adding_up_itself_leaves_the_gradients_as_they_were():
    models = [net(), net()]
    monitor = NoiseScaleMonitor(models[0], only=norm_parameters(models[0]), accumulate=True)
    x = torch.randn(8, 6, dtype=torch.float64)
    for model in models:
        for piece in x.split(4):
            model(piece).sum().backward()
            if model is models[0]:
                monitor.micro_batch(4, divisor=1)
    monitor.update()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(*(m.parameters() for m in models), strict=True))


def test_what_was_measured_of_others_is_not_taken_up():
    model = net()
    alone = NoiseScaleMonitor(model, only=norm_parameters(model))
    run(model, alone, updates=3)
    again = NoiseScaleMonitor(model, only=norm_parameters(model))
    again.load_state_dict(alone.state_dict())
    assert again.estimate() == alone.estimate()
    with pytest.raises(UserError, match="other parameters were measured before"):
        NoiseScaleMonitor(model).load_state_dict(alone.state_dict())


def test_nothing_to_measure():
    model = net()
    with pytest.raises(UserError, match="only: holds no trainable parameters"):
        NoiseScaleMonitor(model, only=[])
    with pytest.raises(UserError, match="leave out parts, and only"):
        NoiseScaleMonitor(model, only=norm_parameters(model), own=True, process_group=None).observe(torch.ones(3), torch.ones(3))


def test_slope_by_hand():
    assert slope([1.0, 2.0], [2.0, 2.0]) == pytest.approx(6 / 5)  # (1*2 + 2*2) / (1 + 4)
    with pytest.raises(UserError, match="1 noise scales of norm layers and 2 of the whole"):
        slope([1.0], [1.0, 2.0])
