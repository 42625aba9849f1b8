"""What a step takes over from the one before it, and what it must look at again: each change against an optimizer that always looks."""

import copy

import pytest
import torch
from torch import nn

from bigbatch.optim import LAMB, LARS, SGDP, AdamP, Muon, SoapMuon
from bigbatch.optim import base as base_module

MAKERS = {
    "LARS": lambda ps: LARS(ps, lr=1.0, weight_decay=1e-3),
    "LAMB": lambda ps: LAMB(ps, lr=0.01),
    "AdamP": lambda ps: AdamP(ps, lr=0.01),
    "SGDP": lambda ps: SGDP(ps, lr=0.01),
    "Muon": lambda ps: Muon([{"params": [p], "orthogonalise": p.ndim > 1} for p in ps], lr=0.01),
    "SoapMuon": lambda ps: SoapMuon([{"params": [p], "orthogonalise": p.ndim > 1} for p in ps], lr=0.01),
}


def give_gradients(params, seed):
    torch.manual_seed(seed)
    for p in params:
        p.grad = torch.randn_like(p)


def moved(p, optimizer):
    p.data = p.data.clone()


def other_type(p, optimizer):
    p.data = p.data.double()


def other_order(p, optimizer):
    p.data = p.data.to(memory_format=torch.channels_last) if p.ndim == 4 else p.data.clone()


def gradient_in_another_order(p, optimizer):
    p.grad = p.grad.to(memory_format=torch.channels_last) if p.ndim == 4 else p.grad


def no_gradient(p, optimizer):
    p.grad = None


def state_replaced(p, optimizer):
    optimizer.state[p] = {name: torch.full_like(value, 0.5) for name, value in optimizer.state[p].items()}


def tensor_of_state_replaced(p, optimizer):
    name = next(name for name in optimizer.state[p] if name != "step")
    optimizer.state[p][name] = torch.full_like(optimizer.state[p][name], 0.5)


def state_moved(p, optimizer):
    for value in optimizer.state[p].values():
        value.data = value.data * 0.5


def state_lost(p, optimizer):
    optimizer.state.pop(p)


def part_of_state_lost(p, optimizer):
    optimizer.state[p].popitem()


def loaded(p, optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def fewer_parameters(p, optimizer):
    group = next(group for group in optimizer.param_groups if any(q is p for q in group["params"]))
    group["params"] = [q for q in group["params"] if q is not p]


CHANGES = [
    moved,
    other_type,
    other_order,
    gradient_in_another_order,
    no_gradient,
    state_replaced,
    tensor_of_state_replaced,
    state_moved,
    state_lost,
    part_of_state_lost,
    loaded,
    fewer_parameters,
]


def run(name, change, monkeypatch, *, looks):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(s)) for s in ((6, 4), (5,), (4, 3, 3, 3))]
    optimizer = MAKERS[name](params)
    with monkeypatch.context() as patch:
        if looks:
            patch.setattr(base_module.BatchCache, "can_cache", staticmethod(lambda batches: False))
        look, looked = optimizer._collect_batches, []
        patch.setattr(optimizer, "_collect_batches", lambda *given: looked.append(step) or look(*given))
        for step in range(6):
            give_gradients(params, step)
            if step == 3:
                for p in params[:1] if change in (state_lost, fewer_parameters, no_gradient) else params:
                    change(p, optimizer)
                    if p.grad is not None and p.grad.dtype != p.dtype:
                        p.grad = torch.randn_like(p)
            optimizer.step()
        assert 3 in looked  # which for a step by kernels is all that matters: they know tensors by their addresses
    return [p.detach().clone() for p in params]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", MAKERS)
def test_a_change_is_noticed(name, change, monkeypatch):
    wanted = run(name, change, monkeypatch, looks=True)
    got = run(name, change, monkeypatch, looks=False)
    assert all(torch.equal(w, g) for w, g in zip(wanted, got, strict=True))


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_is_looked_at_again_without_need(name, monkeypatch):
    params = [nn.Parameter(torch.randn(s)) for s in ((6, 4), (5,))]
    optimizer = MAKERS[name](params)
    give_gradients(params, 0)
    optimizer.step()
    monkeypatch.setattr(optimizer, "_collect_batches", None)  # would raise
    for step in range(3):
        give_gradients(params, step)
        optimizer.step()


def test_gradients_are_let_go():
    """What is remembered of a step must not hold the memory of its gradients."""
    import weakref

    p = nn.Parameter(torch.randn(6, 4))
    optimizer = LARS([p], lr=1.0)
    for step in range(2):
        give_gradients([p], step)
        optimizer.step()
        gradient = weakref.ref(p.grad)
        optimizer.zero_grad()
        assert gradient() is None


def test_a_sparse_gradient_is_refused_later_too():
    p = nn.Parameter(torch.randn(6, 4))
    optimizer = LARS([p], lr=1.0)
    give_gradients([p], 0)
    optimizer.step()
    p.grad = torch.randn(6, 4).to_sparse()
    with pytest.raises(ValueError, match="sparse gradients are not supported"):
        optimizer.step()


def test_copies_and_pickles_look_anew():
    import io

    params = [nn.Parameter(torch.randn(6, 4))]
    optimizer = LAMB(params, lr=0.01)
    give_gradients(params, 0)
    optimizer.step()
    copied = copy.deepcopy(optimizer)
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    results = []
    for other in (optimizer, copied, loaded):
        held = other.param_groups[0]["params"]
        give_gradients(held, 1)
        other.step()
        results.append(held[0].detach())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", ["LAMB", "AdamP"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_a_step_count_of_another_type_is_counted_on_in_float32(name, dtype):
    """A kernel that was given the address of whole numbers would read and write them as float32."""
    p = nn.Parameter(torch.randn(6, 4))
    optimizer = MAKERS[name]([p])
    for step in range(3):
        give_gradients([p], step)
        optimizer.step()
        if step == 1:
            optimizer.state[p]["step"] = torch.tensor(2, dtype=dtype)
    assert optimizer.state[p]["step"].dtype == torch.float32
    assert optimizer.state[p]["step"] == 3
