"""The checks that torch makes of its own optimizers (its test_optim.py), made of ours; run by test_torch_machinery.py.

Inputs are those of `torch.testing._internal.common_optimizers`, whose import changes global switches of torch: a process of its own.
"""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInfo,
    OptimizerInput,
    get_error_inputs_for_all_optims,
    optim_inputs_func_adamw,
    optim_inputs_func_muon,
    optim_inputs_func_sgd,
)

from bigbatch.optim import LAMB, LARS, SGDP, AdamP, Muon, SoapMuon


def only(inputs, known, **more):
    """Torch's inputs, as far as the optimizer has their settings."""
    kept = []
    for one in inputs:
        kwargs = {name: value for name, value in one.kwargs.items() if name in known}
        if set(one.kwargs) - set(known) - {"amsgrad", "foreach", "fused", "differentiable", "capturable"}:
            continue
        kept.append(OptimizerInput(params=None, kwargs={**more, **kwargs}, desc=one.desc))
    return kept


def sgd_like(device, dtype=None, **more):
    return only(optim_inputs_func_sgd(device, dtype), ("lr", "momentum", "weight_decay", "nesterov", "maximize", "dampening"), **more)


def adam_like(device, dtype=None):
    return only(optim_inputs_func_adamw(device, dtype), ("lr", "betas", "eps", "weight_decay", "maximize"))


def lars_like(device, dtype=None):
    plain = [one for one in sgd_like(device, dtype, trust_coefficient=0.001) if "dampening" not in one.kwargs]
    return [*plain, OptimizerInput(None, {"lr": 0.01, "lr_in_momentum": False, "adapt": False}, "rate outside, plain")]


def muon_like(device, dtype=None):
    return only(optim_inputs_func_muon(device, dtype), ("lr", "momentum", "weight_decay", "nesterov", "eps"), dtype=torch.float64)


INFOS = [
    OptimizerInfo(LARS, optim_inputs_func=lars_like, supports_complex=False),
    OptimizerInfo(LAMB, optim_inputs_func=adam_like, supports_complex=False),
    OptimizerInfo(AdamP, optim_inputs_func=adam_like, supports_complex=False),
    OptimizerInfo(SGDP, optim_inputs_func=sgd_like, supports_complex=False),
    OptimizerInfo(Muon, optim_inputs_func=muon_like, supports_complex=False),
    OptimizerInfo(SoapMuon, optim_inputs_func=muon_like, supports_complex=False),
]
CASES = [(info.optim_cls, one) for info in INFOS for one in info.optim_inputs_func("cpu", torch.float32)]
cases = pytest.mark.parametrize(("cls", "given"), CASES, ids=[f"{cls.__name__} {one.desc}" for cls, one in CASES])
classes = pytest.mark.parametrize("cls", [info.optim_cls for info in INFOS])


def matrices_apart(cls, params):
    """Muon takes vectors in a group of their own."""
    params = list(params)
    if not issubclass(cls, Muon) or isinstance(params[0], dict | tuple):
        return params
    groups = [{"params": [p for p in params if p.ndim > 1]}, {"params": [p for p in params if p.ndim < 2], "orthogonalise": False}]
    return [group for group in groups if group["params"]]


def make(cls, params, kwargs):
    return cls(matrices_apart(cls, params), **kwargs)


def small(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return [Parameter(torch.randn(2, 3, dtype=dtype)), Parameter(torch.randn(4, 1, 2, dtype=dtype)), Parameter(torch.randn(3, dtype=dtype))]


def feed(params, seed):
    torch.manual_seed(seed)
    for p in params:
        p.grad = torch.randn_like(p)


def taken(optimizer, params, steps=3):
    for step in range(steps):
        feed(params, step)
        optimizer.step()
    return [p.detach().clone() for p in params]


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a, b)


@cases
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("scheduled", [False, True])
def test_forloop_goes_right_direction(cls, given, strided, scheduled):
    """Torch's: a layer of a few inputs, twenty steps, with and without schedulers, contiguous and not."""
    torch.manual_seed(0)
    if strided:
        weight, bias = Parameter(torch.randn(2, 5, 10)[..., 0]), Parameter(torch.randn(2, 10)[..., 0])
    else:
        weight, bias = Parameter(torch.randn(2, 5)), Parameter(torch.randn(2))
    x = torch.randn(5)
    optimizer = make(cls, [weight, bias], given.kwargs)
    schedulers = [StepLR(optimizer, gamma=0.99, step_size=1), ReduceLROnPlateau(optimizer)] if scheduled else []

    def closure():
        optimizer.zero_grad()
        loss = (weight.mv(x) + bias).square().sum()
        loss.backward()
        return loss

    begin = closure().item()
    for _ in range(20):
        loss = optimizer.step(closure)
        for scheduler in schedulers:
            scheduler.step(loss.detach()) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
    end = closure().item()
    assert end > begin if given.kwargs.get("maximize") else end < begin


@cases
def test_a_tensor_rate_is_a_number(cls, given):
    rate = float(given.kwargs.get("lr", 0.01))
    results = []
    for lr in (rate, torch.tensor(rate, dtype=torch.float64), torch.tensor([rate], dtype=torch.float64)):
        params = small()
        results.append(taken(make(cls, params, {**given.kwargs, "lr": lr}), params))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-7)


@cases
def test_step_is_noop_when_params_have_no_grad(cls, given):
    params = small()
    before = [p.detach().clone() for p in params]
    make(cls, params, given.kwargs).step()
    assert_same(before, [p.detach() for p in params])


@cases
def test_empty_grad(cls, given):
    """Torch's: a parameter of no rows beside an ordinary one, which goes on as if alone."""
    params, alone = [*small(), Parameter(torch.empty(0, 3))], small()
    assert_same(taken(make(cls, params, given.kwargs), params)[:-1], taken(make(cls, alone, given.kwargs), alone))


@cases
def test_state_dict_deterministic(cls, given):
    """Torch's: twice the same, and from a loaded state the same as from the optimizer itself."""
    params, others = small(), small()
    optimizer, again = make(cls, params, given.kwargs), make(cls, others, given.kwargs)
    assert_same(taken(optimizer, params), taken(again, others))
    copied = [Parameter(p.detach().clone()) for p in params]
    loaded = make(cls, copied, given.kwargs)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_same(taken(optimizer, params), taken(loaded, copied))


@cases
def test_save_load_equality_with_weights_only(cls, given):
    params = small()
    optimizer = make(cls, params, given.kwargs)
    taken(optimizer, params)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert loaded["param_groups"] == optimizer.state_dict()["param_groups"]
    for number, state in optimizer.state_dict()["state"].items():
        assert_same(state.values(), loaded["state"][number].values())


@cases
def test_copies_and_pickles_go_on_alike(cls, given):
    """Torch's test_deepcopy_copies_all_public_attrs, and then a step: Muon's copy used to have lost its settings."""
    params = small()
    optimizer = make(cls, params, given.kwargs)
    taken(optimizer, params)
    want = None
    for clone in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        public = {name for name in vars(optimizer) if not name.startswith("_")} - {"process_group"}
        assert public <= set(dir(clone))
        theirs = [p for group in clone.param_groups for p in group["params"]]
        order = [next(i for i, p in enumerate(params) if p.shape == t.shape) for t in theirs]
        torch.manual_seed(9)
        grads = [torch.randn_like(p) for p in params]
        for i, t in zip(order, theirs, strict=True):
            t.grad = grads[i].clone()
        clone.step()
        result = {i: t.detach() for i, t in zip(order, theirs, strict=True)}
        if want is None:
            for p, g in zip(params, grads, strict=True):
                p.grad = g
            optimizer.step()
            want = {i: p.detach() for i, p in enumerate(params)}
        for i, value in result.items():
            assert torch.equal(value, want[i])


@cases
def test_can_load_older_state_dict(cls, given):
    """Torch's: groups from before a setting was there. Those that were not set get their defaults."""
    params = small()
    optimizer = make(cls, params, given.kwargs)
    taken(optimizer, params)
    older = copy.deepcopy(optimizer.state_dict())
    for group in older["param_groups"]:
        for name in ("maximize", "nesterov", "weight_decay", "layout", "matrices"):
            if name in group and name not in given.kwargs:
                del group[name]
    others = [Parameter(p.detach().clone()) for p in params]
    loaded = make(cls, others, given.kwargs)
    loaded.load_state_dict(older)
    assert_same(taken(optimizer, params), taken(loaded, others))


@cases
def test_can_load_from_a_group_of_another_optimizer(cls, given):
    params = small()
    optimizer = make(cls, params, given.kwargs)
    foreign = torch.optim.SGD([p.detach().clone() for p in params], lr=0.1).state_dict()
    state = optimizer.state_dict()
    state["param_groups"] = [
        {
            **foreign["param_groups"][0],
            "params": group["params"],
            **({"orthogonalise": group["orthogonalise"]} if issubclass(cls, Muon) else {}),
        }
        for group in state["param_groups"]
    ]
    optimizer.load_state_dict(state)
    taken(optimizer, params)


@classes
def test_load_nontensor_step(cls):
    """Torch's: `step` as the integer that it once was."""
    params = small()
    optimizer = make(cls, params, {"lr": 0.01})
    taken(optimizer, params)
    state = copy.deepcopy(optimizer.state_dict())
    for values in state["state"].values():
        if "step" in values:
            values["step"] = int(values["step"])
    others = [Parameter(p.detach().clone()) for p in params]
    loaded = make(cls, others, {"lr": 0.01})
    loaded.load_state_dict(state)
    assert_same(taken(optimizer, params), taken(loaded, others))


@classes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hooks_of_state_dicts_see_and_change_what_is_loaded(cls, dtype):
    """What they changed used to be overwritten for bfloat16 parameters."""
    params = small(dtype)
    optimizer = make(cls, params, {"lr": 0.01})
    taken(optimizer, params)
    saved, calls = optimizer.state_dict(), []
    loaded = make(cls, small(dtype), {"lr": 0.01})

    def before(_, state_dict):
        calls.append("pre")
        state_dict = copy.deepcopy(state_dict)
        for values in state_dict["state"].values():
            for name in values:
                if name != "step":
                    values[name] = torch.full_like(values[name], 2.0)
        return state_dict

    def after(optimizer):
        calls.append("post")
        for values in optimizer.state.values():
            for name, value in values.items():
                if name != "step":
                    assert bool((value == 2).all())
                    value.fill_(3.0)

    loaded.register_load_state_dict_pre_hook(before)
    loaded.register_load_state_dict_post_hook(after)
    loaded.load_state_dict(saved)
    assert calls == ["pre", "post"]
    for values in loaded.state.values():
        assert all(bool((value == 3).all()) and value.dtype == torch.float32 for name, value in values.items() if name != "step")

    optimizer.register_state_dict_post_hook(lambda _, state_dict: state_dict | {"more": 1})
    assert optimizer.state_dict()["more"] == 1


@classes
@pytest.mark.parametrize(
    ("saved", "now"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float64, torch.float32), (torch.float32, torch.float64)],
)
def test_state_of_another_precision_is_brought_to_its_own(cls, saved, now):
    params = small()
    optimizer = make(cls, params, {"lr": 0.01})
    taken(optimizer, params)
    state = copy.deepcopy(optimizer.state_dict())
    for values in state["state"].values():
        values.update({name: value.to(saved) for name, value in values.items() if name != "step"})
    others = [Parameter(p.detach().to(now)) for p in params]
    loaded = make(cls, others, {"lr": 0.01})
    loaded.load_state_dict(state)
    for p in others:
        for name, value in loaded.state[p].items():
            assert value.dtype == (torch.float32 if name == "step" else torch.promote_types(now, torch.float32))
    taken(loaded, others)
    assert all(bool(p.isfinite().all()) for p in others)


@classes
def test_step_hooks(cls):
    params, calls = small(), []
    optimizer = make(cls, params, {"lr": 0.01})
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("all pre")),
        register_optimizer_step_post_hook(lambda *_: calls.append("all post")),
        optimizer.register_step_pre_hook(lambda *_: calls.append("pre")),
        optimizer.register_step_post_hook(lambda *_: calls.append("post")),
    ]
    taken(optimizer, params, steps=1)
    for handle in handles:
        handle.remove()
    assert calls == ["all pre", "pre", "post", "all post"]


@classes
def test_can_be_printed_and_has_state(cls):
    params = small()
    optimizer = make(cls, params, {"lr": 0.01})
    assert cls.__name__ in str(optimizer)
    taken(optimizer, params)
    assert all(optimizer.state[p] for p in params)


@classes
def test_grads_are_never_complex(cls):
    with pytest.raises(ValueError, match="must be real floating point"):
        make(cls, [Parameter(torch.randn(2, 2, dtype=torch.complex64))], {"lr": 0.01})


ERRORS = get_error_inputs_for_all_optims("cpu", torch.float32)


@classes
@pytest.mark.parametrize("wrong", ERRORS, ids=[one.optimizer_error_input.desc for one in ERRORS])
def test_errors(cls, wrong):
    assert isinstance(wrong, ErrorOptimizerInput)
    assert wrong.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
    given = wrong.optimizer_error_input
    params = [Parameter(torch.randn(1, 1))] if given.params is None else given.params
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(wrong.error_type, match=wrong.error_regex):
            cls(params, **given.kwargs)


@classes
def test_named_parameters(cls):
    model = nn.Linear(3, 2, bias=False)
    optimizer = cls(model.named_parameters(), lr=0.01)
    assert optimizer.param_groups[0]["param_names"] == ["weight"]
    feed(list(model.parameters()), 0)
    optimizer.step()
    again = cls(model.named_parameters(), lr=0.01)
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["param_names"] == ["weight"]


@classes
def test_default_dtype_of_float64(cls):
    """Torch's test_set_default_dtype_works_with_foreach: `step` must not follow it."""
    old = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        params = small(torch.float64)
        optimizer = make(cls, params, {"lr": 0.01})
        taken(optimizer, params)
        assert all(values["step"].dtype == torch.float32 for values in optimizer.state.values() if "step" in values)
    finally:
        torch.set_default_dtype(old)
