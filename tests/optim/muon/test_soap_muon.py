import copy

import pytest
import torch
from tests.reference import optimizers as reference
from torch import nn

from bigbatch import Recipe, fit
from bigbatch.core.checks import UserError
from bigbatch.optim import Muon, SoapMuon, soap_muon_groups
from bigbatch.optim.muon.newton_schulz import orthogonalise

SETTINGS = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1, "beta2": 0.8, "damping": 0.3, "eps": 1e-8}


def test_hand_worked():
    """g = diag(4, 1): both bases stay the axes, S = diag(4, 1) with mean 5/4, P = diag(4 / (4 + 5/8), 1 / (1 + 5/8)) at damping 1/2."""
    w = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    w.grad = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64))
    SoapMuon([w], lr=0.5, momentum=0.0, damping=0.5, eps=0.0).step()
    p = torch.diag(torch.tensor([4 / 4.625, 1 / 1.625], dtype=torch.float64))
    torch.testing.assert_close(w.detach(), -0.5 * 0.2 * 2**0.5 * orthogonalise(p), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("shape", "settings", "sides"),
    [((5, 5), {}, ("left", "right")), ((3, 27), {"sides": "outputs"}, ("left",)), ((7, 4), {"longest": 4}, ("right",))],
)
def test_follows_the_formula_for_100_steps(shape, settings, sides):
    """Each side that is preconditioned has gradients of full rank, so that its basis is unique and Gram and Schmidt's way finds it too."""
    random = torch.Generator().manual_seed(0)
    w = torch.randn(shape, generator=random, dtype=torch.float64)
    p, state = w.clone().requires_grad_(), {}
    optimizer = SoapMuon([p], **SETTINGS, **settings)
    for t in range(1, 101):
        g = torch.randn(shape, generator=random, dtype=torch.float64)
        p.grad = g.clone()
        optimizer.step()
        w, state = reference.soap_muon(w, state, t, g, **SETTINGS, sides=sides)
        assert torch.equal(p.grad, g)
        torch.testing.assert_close(p.detach(), w, rtol=1e-9, atol=1e-9)


def test_stacked_matrices_are_alone():
    """Two matrices in one weight take the steps that they take as two weights."""
    random = torch.Generator().manual_seed(0)
    whole = torch.randn(8, 4, generator=random, dtype=torch.float64).requires_grad_()
    parts = [part.clone().requires_grad_() for part in whole.detach().chunk(2)]
    together, apart = SoapMuon([whole], matrices=2, **SETTINGS), SoapMuon(parts, **SETTINGS)
    for _ in range(5):
        whole.grad = torch.randn(8, 4, generator=random, dtype=torch.float64)
        for part, grad in zip(parts, whole.grad.chunk(2), strict=True):
            part.grad = grad.clone()
        together.step()
        apart.step()
    torch.testing.assert_close(whole.detach(), torch.cat([part.detach() for part in parts]), rtol=1e-9, atol=1e-9)


def test_nothing_preconditioned_but_each_element_is_muon_of_adams_direction():
    """longest=0: P = Z / (S + ...); of gradients of one size everywhere that is Muon."""
    random = torch.Generator().manual_seed(0)
    a = torch.randn(6, 4, generator=random, dtype=torch.float64).requires_grad_()
    b = a.detach().clone().requires_grad_()
    ours, muon = SoapMuon([a], lr=0.1, longest=0, momentum=0.9), Muon([b], lr=0.1, momentum=0.9)
    for _ in range(3):
        a.grad = torch.randn(6, 4, generator=random, dtype=torch.float64).sign()
        b.grad = a.grad.clone()
        ours.step()
        muon.step()
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_directions_that_are_zero_but_for_rounding_do_not_move_the_weights():
    """An input that is always 0, or nearly: without damping its column moved as far as all others."""
    random = torch.Generator().manual_seed(0)
    moved = []
    for noise in (0.0, 1e-9):
        w = torch.zeros(4, 6).requires_grad_()
        optimizer = SoapMuon([w], lr=0.1, dtype=torch.float32)
        random.manual_seed(0)
        for _ in range(10):
            w.grad = torch.randn(4, 6, generator=random)
            w.grad[:, -1] = noise * torch.randn(4, generator=random)
            optimizer.step()
        moved.append(w.detach())
    assert moved[0][:, -1].abs().max() < 1e-6 * moved[0].abs().max()
    torch.testing.assert_close(moved[1], moved[0], rtol=0, atol=1e-4)


def test_a_copy_of_the_state_goes_on_alike():
    random = torch.Generator().manual_seed(0)
    p = torch.randn(4, 6, generator=random).requires_grad_()
    optimizer, grads = SoapMuon([p], **SETTINGS), [torch.randn(4, 6, generator=random) for _ in range(6)]
    for g in grads[:3]:
        p.grad = g
        optimizer.step()
    q = p.detach().clone().requires_grad_()
    again = SoapMuon([q], **SETTINGS)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for g in grads[3:]:
        for weight, stepping in ((p, optimizer), (q, again)):
            weight.grad = g.clone()
            stepping.step()
    assert torch.equal(p, q)
    assert optimizer.state[p]["left"].shape == (1, 4, 4)
    assert optimizer.state[p]["right_basis"].shape == (1, 6, 6)


@pytest.mark.parametrize(
    ("model", "sides"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2)), ["outputs", "both"]),
        (nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 3), nn.Linear(3, 2)), ["both"]),
        (nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.Linear(4, 3), nn.Linear(3, 2)), ["both"]),
        (nn.Sequential(nn.LSTM(4, 3), nn.Linear(3, 2)), ["outputs", "both"]),
    ],
    ids=["linear", "embedding", "patches", "LSTM"],
)
def test_raw_inputs_keep_their_own_basis(model, sides):
    groups = soap_muon_groups(model, lr=0.1, adam_lr=0.01)
    assert [g.get("sides", "both") for g in groups if g["orthogonalise"]] == sides
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(map(id, model.parameters()))
    own = soap_muon_groups(model, lr=0.1, adam_lr=0.01, overrides={"0.weight*": {"group": "muon", "sides": "both"}} if sides[1:] else None)
    assert all(g.get("sides", "both") == "both" for g in own if g["orthogonalise"])


def test_a_recipe_trains_by_it():
    recipe = Recipe.named("digits/mlp").replace(
        {"optimizer": {"name": "soap_muon", "lr": 0.05, "adam_lr": 0.02, "beta2": 0.8}, "budget.epochs": 1.0}
    )
    assert fit("digits/mlp", recipe, quiet=True, tensorboard=False).test_score > 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta2": 1.0}, "beta2 = 1.0"),
        ({"damping": -0.1}, "damping = -0.1"),
        ({"longest": -1}, "longest = -1"),
        ({"sides": "output"}, "did you mean 'outputs'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        SoapMuon([torch.zeros(3, 2, requires_grad=True)], **settings)
