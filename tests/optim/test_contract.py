"""What every optimizer of this package owes its user, in one table."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bigbatch.core.checks import UserError
from bigbatch.core.tensors.multi_tensor import BLOCK
from bigbatch.optim import LAMB, LARS, SGDP, AdamP, Muon, SoapMuon, muon_groups, param_groups, soap_muon_groups

DOUBLE = {"dtype": torch.float64}
MAKERS = {
    "LARS": lambda params, **kw: LARS(params, **{"lr": 0.5, "weight_decay": 0.01, "trust_coefficient": 0.1, **kw}),
    "LARS outside": lambda params, **kw: LARS(params, **{"lr": 0.5, "lr_in_momentum": False, "nesterov": True, **kw}),
    "LAMB": lambda params, **kw: LAMB(params, **{"lr": 0.01, "weight_decay": 0.1, **kw}),
    "AdamP": lambda params, **kw: AdamP(params, **{"lr": 0.01, "weight_decay": 0.1, **kw}),
    "SGDP": lambda params, **kw: SGDP(params, **{"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, **kw}),
    "SGDP nesterov": lambda params, **kw: SGDP(params, **{"lr": 0.05, "momentum": 0.9, "nesterov": True, **kw}),
    "Muon": lambda params, **kw: Muon(_split(params), **{"lr": 0.02, "weight_decay": 0.1, "dtype": torch.float32, **kw}),
    "SoapMuon": lambda params, **kw: SoapMuon(_split(params), **{"lr": 0.02, "weight_decay": 0.1, "dtype": torch.float32, **kw}),
}
OF_MATRICES = (MAKERS["Muon"], MAKERS["SoapMuon"])
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def _split(params):
    params = list(params)
    if isinstance(params[0], dict):
        return [{**g, "orthogonalise": all(p.ndim > 1 for p in g["params"])} for g in params]
    groups = [
        {"params": [p for p in params if p.ndim > 1]},
        {"params": [p for p in params if p.ndim < 2], "orthogonalise": False, "lr": 0.01},
    ]
    return [g for g in groups if g["params"]]


def tensors(dtype=torch.float32, seed=0, shapes=((6, 4), (5,), (4, 3, 3, 3), (1, 7))):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=random).to(dtype).requires_grad_() for s in shapes]


def feed(params, step):
    random = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=random).to(p.dtype)


def steps(optimizer, params, first, last):
    for step in range(first, last):
        feed(params, step)
        optimizer.step()


@every
def test_gradients_are_untouched(make):
    params = tensors()
    feed(params, 0)
    before = [p.grad.clone() for p in params]
    make(params).step()
    assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))


@pytest.mark.bit_for_bit
@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_resume_is_bit_for_bit(make, dtype):
    params = tensors(dtype)
    whole = make(params)
    steps(whole, params, 0, 3)
    kept, state = [p.detach().clone() for p in params], copy.deepcopy(whole.state_dict())
    steps(whole, params, 3, 6)
    again = [p.clone().requires_grad_() for p in kept]
    resumed = make(again)
    resumed.load_state_dict(state)
    wide = torch.promote_types(dtype, torch.float32)
    assert {v.dtype for s in resumed.state.values() for k, v in s.items() if k != "step"} == {wide}
    steps(resumed, again, 3, 6)
    assert all(torch.equal(p, q) for p, q in zip(params, again, strict=True))


@every
def test_bfloat16_is_float32_rounded_once(make):
    exact, rounded = tensors(torch.bfloat16), tensors(torch.bfloat16)
    exact = [p.detach().float().requires_grad_() for p in exact]
    a, b = make(exact), make(rounded)
    feed(rounded, 0)
    for p, q in zip(exact, rounded, strict=True):
        p.grad = q.grad.float()
    a.step()
    b.step()
    for p, q in zip(exact, rounded, strict=True):
        torch.testing.assert_close(p.detach().bfloat16(), q.detach(), rtol=1e-2, atol=0)


@every
def test_none_and_zero_gradients(make):
    params = tensors()
    optimizer = make(params)
    params[0].grad = None
    for p in params[1:]:
        p.grad = torch.zeros_like(p)
    before = params[0].detach().clone()
    optimizer.step()
    assert torch.equal(params[0], before)
    assert params[0] not in optimizer.state
    assert all(bool(torch.isfinite(p).all()) for p in params)
    steps(optimizer, params, 0, 2)
    assert not torch.equal(params[0], before)


@every
def test_maximize_climbs(make):
    down, up = tensors(), tensors()
    a, b = make(down, weight_decay=0.0), make(up, weight_decay=0.0, maximize=True)
    feed(down, 0)
    for p, q in zip(down, up, strict=True):
        q.grad = -p.grad
    a.step()
    b.step()
    for p, q in zip(down, up, strict=True):
        torch.testing.assert_close(p, q)


@every
def test_channels_last_and_several_groups(make):
    plain, last = tensors(), tensors()
    last[2] = last[2].detach().to(memory_format=torch.channels_last).requires_grad_()
    a = make([{"params": plain[::2]}, {"params": plain[1::2]}] if make not in OF_MATRICES else plain)
    b = make(last)
    for step in range(3):
        feed(plain, step)
        feed(last, step)
        last[2].grad = last[2].grad.contiguous(memory_format=(torch.channels_last, torch.contiguous_format)[step % 2])
        a.step()
        b.step()
    for p, q in zip(plain, last, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@every
def test_the_cut_into_blocks_changes_nothing(make, monkeypatch):
    shapes = ((40, 30), (700,), (3, 5), (64, 3, 3, 3))
    a, b = tensors(torch.float64, shapes=shapes), tensors(torch.float64, shapes=shapes)
    extra = {"dtype": torch.float64} if make in OF_MATRICES else {}
    whole = make(a, **extra)
    steps(whole, a, 0, 3)
    monkeypatch.setattr("bigbatch.core.tensors.multi_tensor.BLOCK", 128)
    cut = make(b, **extra)
    steps(cut, b, 0, 3)
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


@every
def test_a_rate_may_be_a_tensor(make):
    a, b = tensors(), tensors()
    number, tensor = make(a), make(b)
    for group in tensor.param_groups:
        group["lr"] = torch.tensor(group["lr"])
    steps(number, a, 0, 3)
    steps(tensor, b, 0, 3)
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


@every
def test_the_step_compiles(make):
    a, b = tensors(), tensors()
    eager, traced = make(a), make(b)
    step = torch.compile(traced.step, backend="aot_eager")
    for number in range(2):
        steps(eager, a, number, number + 1)
        feed(b, number)
        step()
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


class Watch(TorchDispatchMode):
    """Largest number of bytes alive at once among the tensors made under it; and whether anything was read back to the host."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak, self.waits = {}, 0, 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            self.waits.append(str(func))
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, list | tuple) else [out]:
            if isinstance(t, torch.Tensor):
                storage = t.untyped_storage()
                key = storage._cdata
                if key not in self.alive and not any(key == a.untyped_storage()._cdata for a in _flat(args)):
                    self.alive[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(t, self._freed, key)
        self.peak = max(self.peak, self.now)
        return out

    def _freed(self, key):
        self.now -= self.alive.pop(key, 0)


class Sent(TorchFunctionMode):
    """Calls that send numbers of the host to a device, which waits for the copy."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.tensor, torch.as_tensor):
            self.calls.append(args)
        return func(*args, **(kwargs or {}))


def _flat(args):
    for a in args:
        if isinstance(a, torch.Tensor):
            yield a
        elif isinstance(a, list | tuple):
            yield from _flat(a)


@every
def test_no_more_than_one_temporary_of_the_parameters_size(make):
    # Muon's temporaries are those of one matrix (about six times its size): its parameters must be many for the bound to mean much.
    shapes = {MAKERS["Muon"]: [(256, 1024)] * 8, MAKERS["SoapMuon"]: [(256, 256)] * 32}
    params = tensors(shapes=shapes.get(make, ((512, 1024), (2 * BLOCK,), (256, 128, 3, 3))))
    optimizer = make(params)
    steps(optimizer, params, 0, 1)  # makes the state
    feed(params, 1)
    gc.collect()
    with Watch() as watch:
        optimizer.step()
    assert watch.peak <= sum(p.numel() * 4 for p in params) + 8192
    assert watch.peak > 0


@every
def test_nothing_waits_for_a_device(make):
    """Meta tensors take the path of an accelerator: nothing is read back, and no list is sent over once the first step is done."""
    params = [p.detach().to("meta").requires_grad_() for p in tensors(shapes=((6, 4), (5,), (4, 3, 3, 3), (6, 4)))]
    optimizer = make(params)
    for p in params:
        p.grad = torch.empty_like(p)
    optimizer.step()
    with Watch() as watch, Sent() as sent:
        optimizer.step()
    assert watch.waits == []
    assert sent.calls == []


BAD = [
    ({"lr": -1.0}, "lr = -1.0"),
    ({"lr": float("nan")}, "lr = nan"),
    ({"weight_decay": -0.1}, "weight_decay = -0.1"),
]


@every
@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_settings(make, settings, message):
    with pytest.raises(UserError, match=message):
        make(tensors(), **settings)


@pytest.mark.parametrize("cls", [LAMB, AdamP, Muon, SoapMuon])
@pytest.mark.parametrize(("settings", "message"), [({"betas": (1.0, 0.9)}, r"betas\[0\] = 1.0"), ({"eps": -1.0}, "eps = -1.0")])
def test_bad_adam_settings(cls, settings, message):
    with pytest.raises(UserError, match=message):
        cls(tensors(shapes=[(2, 2)]), **settings)


@pytest.mark.parametrize("cls", [LARS, SGDP, Muon, SoapMuon])
def test_bad_momentum(cls):
    with pytest.raises(UserError, match="momentum = 1.0"):
        cls(tensors(shapes=[(2, 2)]), momentum=1.0)


@pytest.mark.parametrize(
    ("cls", "settings"),
    [(LARS, {"trust_coefficient": -1.0}), (AdamP, {"delta": -1.0}), (SGDP, {"wd_ratio": -1.0}), (SGDP, {"dampening": 1.0})],
)
def test_bad_own_settings(cls, settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        cls(tensors(shapes=[(2, 2)]), **settings)


@pytest.mark.parametrize("cls", [LARS, LAMB, AdamP, SGDP, Muon, SoapMuon])
def test_bad_parameters(cls):
    p = torch.zeros(2, 2, requires_grad=True)
    with pytest.raises(ValueError, match="empty"):
        cls([])
    with pytest.raises(UserError, match="group 1 is empty"):
        cls([{"params": [p]}, {"params": []}])
    with pytest.raises(ValueError, match="more than one parameter group"):
        cls([{"params": [p]}, {"params": [p]}])
    with pytest.raises(UserError, match=r"complex64.*view_as_real"):
        cls([torch.zeros(2, 2, dtype=torch.complex64, requires_grad=True)])
    optimizer = cls([p])
    p.grad = torch.eye(2).to_sparse()
    with pytest.raises(UserError, match="sparse gradients are not supported"):
        optimizer.step()


def test_groups_from_a_model_train_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    for optimizer in (
        LARS(param_groups(model, weight_decay=0.01), lr=1.0),
        LAMB(param_groups(model, weight_decay=0.01)),
        Muon(muon_groups(model, lr=0.02, adam_lr=0.01)),
        SoapMuon(soap_muon_groups(model, lr=0.02, adam_lr=0.01)),
    ):
        before = [p.detach().clone() for p in model.parameters()]
        model(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
