import pytest
import torch
from torch import nn

from bigbatch.curvature.convolutions import Convolutions
from bigbatch.curvature.hessian import Hessian
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
]


@pytest.mark.parametrize(("layer", "shape"), CASES, ids=lambda value: str(value))
def test_the_same_derivatives_as_torch(layer, shape):
    layer = layer.double()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = derivatives(layer, x)
    with Convolutions():
        found = derivatives(layer, x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    third = [torch.autograd.grad(sum(t.sum() for t in of[-2:]), layer.weight)[0] for of in (found, expected)]
    torch.testing.assert_close(*third, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("layer", "shape"), CASES, ids=lambda value: str(value))
def test_the_same_derivatives_towards_inputs(layer, shape):
    layer = layer.double()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    with Convolutions():
        assert torch.autograd.gradgradcheck(lambda x, *_: layer(x) ** 2, (x, *layer.parameters()), atol=1e-4, fast_mode=True)


def test_what_is_not_differentiated_is_left_to_torch():
    with Convolutions():
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
