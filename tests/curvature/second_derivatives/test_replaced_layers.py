import pytest
import torch
from torch import nn

from bigbatch.curvature.products.hessian import Hessian
from bigbatch.curvature.second_derivatives.replaced_layers import FastSecondDerivatives
from bigbatch.tasks.models import cnn


def derivatives(layer, x):
    """Output, gradients, and a product with the second derivative, of something curved in the weights."""
    weights = list(layer.parameters())
    output = layer(x)
    grads = torch.autograd.grad((output**3).sum(), weights, create_graph=True)
    v = [torch.linspace(-1, 1, w.numel(), dtype=w.dtype).view(w.shape) for w in weights]
    return output, *grads, *torch.autograd.grad(grads, weights, v, create_graph=True)


CASES = [
    (nn.Conv1d(2, 3, 3), (2, 2, 7)),
    (nn.Conv2d(2, 4, 3, padding=1, bias=False), (2, 2, 5, 6)),
    (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2), (3, 4, 7, 8)),
    (nn.Conv3d(1, 2, 2, stride=2), (2, 1, 4, 4, 4)),
    (nn.Conv2d(2, 3, 3, padding="same"), (2, 2, 5, 5)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 2, 5, 5)),
    (nn.Conv2d(2, 3, 3), (2, 5, 5)),  # no batch dimension
    (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1)), (2, 1, 5, 5)),
    (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Conv2d(2, 2, 1)), (2, 1, 5, 5)),
    (nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2)), (3, 1, 7, 6)),
    (nn.Sequential(nn.Conv2d(1, 3, 3), nn.MaxPool2d((3, 2), stride=(2, 1), padding=1, ceil_mode=True), nn.Conv2d(3, 2, 2)), (3, 1, 8, 7)),
    (nn.Sequential(nn.Conv2d(1, 3, 3), nn.MaxPool2d(2, stride=2, dilation=2), nn.ReLU(), nn.Conv2d(3, 2, 1)), (3, 1, 8, 9)),
    (nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Conv2d(2, 2, 1)), (1, 7, 7)),  # no batch dimension
]


@pytest.mark.parametrize(("layer", "shape"), CASES, ids=lambda value: str(value))
def test_the_same_derivatives_as_torch(layer, shape):
    layer = layer.double()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = derivatives(layer, x)
    with FastSecondDerivatives():
        found = derivatives(layer, x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    first = next(layer.parameters())
    third = [torch.autograd.grad(sum(t.sum() for t in of[-2:]), first)[0] for of in (found, expected)]
    torch.testing.assert_close(*third, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("layer", "shape"), CASES, ids=lambda value: str(value))
def test_the_same_derivatives_towards_inputs(layer, shape):
    layer = layer.double()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    with FastSecondDerivatives():
        assert torch.autograd.gradgradcheck(lambda x, *_: layer(x) ** 2, (x, *layer.parameters()), atol=1e-4, fast_mode=True)


def test_what_is_not_differentiated_is_left_to_torch():
    with FastSecondDerivatives():
        assert torch.conv1d(torch.ones(1, 1, 3), torch.ones(1, 1, 2)).grad_fn is None


def test_no_gradient_towards_data_is_computed():
    """A product of a network whose first layer is a convolution has no transposed convolution of it."""
    x, y = torch.randn(4, 1, 28, 28), torch.arange(4)
    operator = Hessian(cnn(4, 8), nn.functional.cross_entropy, [(x, y)])
    v = torch.ones(operator.size)
    operator(v)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        operator(v)
    shapes = [event.input_shapes[:2] for event in profile.events() if event.name == "aten::convolution"]
    assert [[4, 1, 28, 28], [4, 1, 3, 3]] in shapes
    assert [[4, 4, 28, 28], [4, 1, 3, 3]] not in shapes


@pytest.mark.parametrize("chosen", [["weight"], ["bias"]])
def test_of_a_convolution_only_its_weight_or_its_bias(chosen):
    layer, x = nn.Conv2d(2, 3, 2).double(), torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name, p in layer.named_parameters():
        p.requires_grad_(name in chosen)
    weights = [getattr(layer, name) for name in chosen]

    def product():
        grads = torch.autograd.grad((layer(x) ** 3).sum(), weights, create_graph=True)
        return torch.autograd.grad(grads, weights, [torch.ones_like(w) for w in weights])

    expected = product()
    x.requires_grad_()  # or a frozen weight would be left to torch
    with FastSecondDerivatives():
        found = product()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_no_zeros_go_through_the_network():
    """Torch's second derivatives of ReLU and max-pooling towards the choice; in-place ReLU is torch's, and shows that they are seen."""
    x, y = torch.randn(4, 1, 28, 28), torch.arange(4)
    for inplace in (False, True):
        model = cnn(4, 8)
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = inplace
        operator = Hessian(model, nn.functional.cross_entropy, [(x, y)])
        operator(torch.ones(operator.size))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            operator(torch.ones(operator.size))
        nodes = {event.name.split()[-1] for event in profile.events()}
        assert ("ThresholdBackwardBackward0" in nodes) == inplace
        assert "MaxPool2DWithIndicesBackwardBackward0" not in nodes


def test_within_transforms_of_torch_func_all_is_left_to_torch():
    """A model that differentiates, or maps over samples, by itself."""

    class Slopes(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(0), nn.Linear(8, 1))

        def forward(self, x):
            return torch.func.vmap(torch.func.grad(lambda x: self.net(x[None]).sum() ** 2))(x).flatten(1)

    torch.manual_seed(0)
    model, x = Slopes().double(), torch.randn(3, 1, 6, 6, dtype=torch.float64)
    weights = list(model.parameters())

    def product():
        grads = torch.autograd.grad((model(x) ** 2).sum(), weights, create_graph=True, allow_unused=True, materialize_grads=True)
        return torch.autograd.grad(grads, weights, [torch.ones_like(w) for w in weights], allow_unused=True)

    expected = product()
    with FastSecondDerivatives():
        found = product()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
