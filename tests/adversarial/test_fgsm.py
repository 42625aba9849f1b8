import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bigbatch.adversarial import Attack, check_eps, fgsm_step, input_gradient
from bigbatch.adversarial.fgsm import signs, state_of
from bigbatch.core.checks import UserError
from bigbatch.layers import adversarial_stream, convert_split_batch_norm


def losses(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def normalised(dropout=0.0):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(4 * 9, 3))
    return convert_split_batch_norm(layers)


def batch(n=6):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 2, 5, 5, generator=generator), torch.randint(3, (n,), generator=generator)


def test_hand_worked():
    """loss = (w x - y)^2 with w = -2, y = 1: at x = 0.5 it is (-2)^2, and its slope is 2 (-2) (-2) = 8, upwards."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, -2.0)
    x, y = torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    gradient = input_gradient(model, lambda outputs, targets: (outputs[:, 0] - targets).square(), x, y)
    assert gradient.item() == 8.0
    assert fgsm_step(x, gradient, eps=0.25, low=0.0, high=1.0).item() == 0.75  # the loss is now (-2.5)^2


def test_a_step_has_one_size_and_stays_in_range():
    x = torch.tensor([[0.0, 0.05, 0.5, 0.95]], dtype=torch.float64)
    gradient = torch.tensor([[-1e-30, -7.0, 1e30, 1e-9]], dtype=torch.float64)
    torch.testing.assert_close(fgsm_step(x, gradient, eps=0.1, low=0.0, high=1.0), torch.tensor([[0.0, 0.0, 0.6, 1.0]]).double())


def test_channels_scaled_apart():
    x = torch.zeros(1, 2, 1, 2)
    gradient = torch.tensor([[[[1.0, -1.0]], [[1.0, -1.0]]]])
    scale = torch.tensor([1.0, 3.0])[:, None, None]
    stepped = fgsm_step(x, gradient, eps=0.5 * scale, low=-0.4 * scale, high=scale)
    torch.testing.assert_close(stepped, torch.tensor([[[[0.5, -0.4]], [[1.5, -1.2]]]]))


@given(st.floats(0.001, 1.0), st.integers(0, 2**31), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_within_eps_and_range_whatever_the_gradient(eps, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 7, generator=generator).to(dtype)
    gradient = torch.randn(3, 7, generator=generator).to(dtype)
    stepped = fgsm_step(x, gradient, eps=eps, low=0.0, high=1.0)
    assert stepped.dtype == dtype
    assert bool(((stepped >= 0) & (stepped <= 1)).all())
    slack = 1e-2 if dtype == torch.bfloat16 else 1e-6
    assert float((stepped - x).abs().max()) <= eps + slack
    assert torch.equal(stepped, fgsm_step(x, signs(gradient), eps=eps, low=0.0, high=1.0))  # signs are all that counts


def test_what_is_not_a_number_has_no_direction():
    assert signs(torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0])).tolist() == [0, 1, -1, 0]


def test_gradient_is_that_of_autograd_through_the_auxiliary_batch_norms():
    model, (x, y) = normalised().double().train(), batch()
    x = x.double()
    for m in model.modules():  # so that the streams differ
        if hasattr(m, "auxiliary"):
            nn.init.normal_(m.auxiliary.weight)
    expected = x.clone().requires_grad_()
    with adversarial_stream(model):
        losses(model(expected), y).sum().backward()
        found = input_gradient(model, losses, x, y)
    torch.testing.assert_close(found, expected.grad, rtol=0, atol=1e-14)


@pytest.mark.bit_for_bit
def test_everything_else_is_left_as_found():
    model, (x, y) = normalised(dropout=0.5).train(), batch()
    losses(model(x), y).sum().backward()
    gradients = [p.grad.clone() if p.grad is not None else None for p in model.parameters()]
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    attack = Attack(model, losses, within=lambda: adversarial_stream(model), seed=(3,))
    first = attack.directions([(x, y)], 0)
    assert torch.equal(torch.get_rng_state(), random)
    assert x.grad is None
    assert not x.requires_grad
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert (p.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(p.grad, gradient)
    torch.rand(5)
    assert torch.equal(attack.directions([(x, y)], 0)[0], first[0])  # dropout draws from seed and number alone
    assert not torch.equal(attack.directions([(x, y)], 1)[0], first[0])
    assert not torch.equal(attack.directions([(x, y), (x, y)], 0)[1], first[0])


@pytest.mark.bit_for_bit
def test_other_weights_than_the_models_own():
    model, (x, y) = normalised().train(), batch()
    old = state_of(model, copied=True)
    before = input_gradient(model, losses, x, y)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    assert not torch.equal(input_gradient(model, losses, x, y), before)
    assert torch.equal(input_gradient(model, losses, x, y, state=old), before)


@pytest.mark.parametrize(("eps", "low", "high"), [(0.0, 0.0, 1.0), (-0.1, 0.0, 1.0), (1.5, 0.0, 1.0), (float("nan"), 0.0, 1.0)])
def test_a_step_outside_the_range_is_refused(eps, low, high):
    with pytest.raises(UserError, match=r"eps = .*: must be above zero and at most the data's range, from 0 to 1"):
        check_eps(eps, low, high)


def test_a_range_that_is_none_is_refused():
    with pytest.raises(UserError, match="must be above zero and at most"):
        check_eps(0.1, 0.0, float("inf"))
    with pytest.raises(UserError, match="eps = 0.1 0.5"):
        check_eps(torch.tensor([0.1, 0.5]), torch.zeros(2), torch.tensor([1.0, 0.4]))


def test_whole_numbers_have_no_direction():
    with pytest.raises(UserError, match="inputs of torch.int64: have no direction to step in"):
        input_gradient(nn.Embedding(3, 2), losses, torch.tensor([1, 2]), torch.tensor([0, 1]))
