"""Triton's kernels run by its interpreter on a CPU, beside the foreach path and float64; run by test_kernels.py with TRITON_INTERPRET=1.

The interpreter reads and writes through the very addresses that a device would; it knows nothing of alignment, registers or races.
"""

import importlib
import os
import shutil
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import triton

from bigbatch.core.hardware import kernels as core_kernels
from bigbatch.optim import LAMB, LARS, SGDP, AdamP, kernels
from bigbatch.optim.kernels import tables

assert os.environ["TRITON_INTERPRET"] == "1"
METHODS = {"LARS": LARS, "LAMB": LAMB, "AdamP": AdamP, "SGDP": SGDP}
SHAPES = ((6, 4), (5,), (), (0, 3), (2, 1030), (2, 130), (4, 3, 3, 3), (4100,), (1, 7), (70, 3))
"""Rows of one tile and of several, many rows to a tile, chunks that are full and the rest of one."""


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setattr(core_kernels, "DEVICES", {"cpu"})
    monkeypatch.setattr(core_kernels, "_tried", set())
    monkeypatch.setattr(core_kernels, "_failed", set())
    with np.errstate(all="ignore"):
        yield


def start(shapes, dtype, *, zeros=(), channels_last=False):
    random = torch.Generator().manual_seed(0)
    params = []
    for i, shape in enumerate(shapes):
        w = torch.zeros(shape) if i in zeros else torch.randn(shape, generator=random)
        w = w.to(dtype if dtype is not torch.float64 else torch.float32).to(dtype)
        if channels_last and w.ndim == 4:
            w = w.contiguous(memory_format=torch.channels_last)
        params.append(w.requires_grad_())
    return params


def gradients(params, step, *, zeros=(), dtype=None):
    """Some at right angles to the weights, by rows or altogether, so that each branch of the projection is taken."""
    random = torch.Generator().manual_seed(step + 1)
    for i, p in enumerate(params):
        g = torch.randn(p.shape, generator=random, dtype=torch.float64)
        w = p.detach().double()
        if w.ndim > 1 and w.numel() and (step + i) % 3:
            rows, flat = (t.reshape(w.size(0) if (step + i) % 3 == 1 else 1, -1) for t in (w, g))
            g = (flat - rows * (flat * rows).sum(1, keepdim=True) / rows.square().sum(1, keepdim=True).clamp_min(1e-30)).view(p.shape)
        g = torch.zeros_like(g) if i in zeros else g
        p.grad = g.to(dtype or p.dtype)


def trained(make, params, *, by_kernels, grads=None, zeros=(), steps=2, dtype=None):
    """Weights and state after some steps; `grads` are those of another run, which they are to share."""
    optimizer, seen = make(params), []
    for step in range(steps if grads is None else len(grads)):
        if grads is None:
            gradients(params, step, zeros=zeros, dtype=dtype)
            seen.append([p.grad.clone() for p in params])
        else:
            for p, g in zip(params, grads[step], strict=True):
                p.grad = g.to(p.dtype if dtype is None else dtype)
        before = [p.grad.clone() for p in params]
        if by_kernels:
            optimizer.step()
        else:
            with core_kernels.without_kernels():
                optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))
    assert not by_kernels or core_kernels._tried
    state = [t for p in params for name, t in optimizer.state[p].items() if name != "step"]
    return [p.detach() for p in params], state, seen


def largest_error(got, want):
    """Relative to the largest element of each tensor."""
    errors = [
        (a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-30) for a, b in zip(got, want, strict=True) if b.numel()
    ]
    assert not any(bool(e.isnan()) for e in errors)
    return float(max(errors))


def errors_of(method, settings, *, shapes=SHAPES, dtype=torch.float32, zeros=(), zero_grads=(), channels_last=False, **more):
    """Of the kernels, from the foreach path and from float64; and of the foreach path, from float64."""

    def make(params):
        return METHODS[method](params, **settings)

    begin = {"zeros": zeros, "channels_last": channels_last}
    weights, state, grads = trained(make, start(shapes, dtype, **begin), by_kernels=True, zeros=zero_grads, **more)
    plain, plain_state, _ = trained(make, start(shapes, dtype, **begin), by_kernels=False, grads=grads, **more)
    exact = [p.detach().double().requires_grad_() for p in start(shapes, dtype, **begin)]
    exact, exact_state, _ = trained(make, exact, by_kernels=False, grads=[[g.double() for g in gs] for gs in grads])
    assert all(t.dtype == torch.float32 for t in state)
    assert len(state) == len(plain_state) == len(exact_state)
    ours, theirs, true = [*weights, *state], [*plain, *plain_state], [*exact, *exact_state]
    return largest_error(ours, theirs), largest_error(ours, true), largest_error(theirs, true)


PLAIN = {
    "LARS": {"lr": 0.5, "weight_decay": 0.01, "trust_coefficient": 0.1},
    "LAMB": {"lr": 0.01, "weight_decay": 0.1},
    "AdamP": {"lr": 0.01, "weight_decay": 0.1},
    "SGDP": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
}
CASES = [
    *PLAIN.items(),
    ("LARS", {"lr": 0.5, "nesterov": True, "lr_in_momentum": False, "eps": 1e-3, "trust_coefficient": 0.1}),
    ("LARS", {"lr": 0.01, "adapt": False, "maximize": True, "weight_decay": 0.1}),
    ("LARS", {"lr": 0.01, "adapt": False, "lr_in_momentum": False, "momentum": 0.0}),
    ("LAMB", {"lr": 0.01, "bias_correction": False, "maximize": True, "betas": (0.5, 0.9)}),
    ("LAMB", {"lr": 0.01, "adapt": False, "weight_decay": 0.1}),
    ("AdamP", {"lr": 0.01, "maximize": True, "delta": 0.3, "wd_ratio": 0.5, "betas": (0.5, 0.9)}),
    ("SGDP", {"lr": 0.05, "nesterov": True, "maximize": True, "dampening": 0.2, "weight_decay": 0.1, "momentum": 0.5}),
    ("SGDP", {"lr": 0.05, "momentum": 0.0, "dampening": 0.1, "delta": 0.5}),
]


@pytest.mark.parametrize(("method", "settings"), CASES, ids=lambda value: value if isinstance(value, str) else ",".join(value))
def test_kernels_make_the_step_of_the_foreach_path(method, settings):
    foreach, exact, foreach_exact = errors_of(method, settings)
    print(f"{method}: from the foreach path {foreach:.1e}, from float64 {exact:.1e}, the foreach path's {foreach_exact:.1e}")
    assert foreach < 3e-6
    assert exact < 2 * foreach_exact + 1e-6  # a step may leave little of a weight, and its rounding with it
    assert foreach_exact < 1e-4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_parameters_with_state_of_float32(method, dtype):
    """Weights are rounded once a step: after one step they may differ by one unit in their last place, where float32 rounds otherwise."""
    foreach, exact, _ = errors_of(method, PLAIN[method], dtype=dtype, steps=1)
    assert foreach < {torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    assert foreach == 0 or exact < 0.02


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_float32_for_bfloat16_parameters(method):
    def make(params):
        return METHODS[method](params, **PLAIN[method])

    results = []
    for by_kernels in (True, False):
        params = start(((6, 4), (5,)), torch.bfloat16)
        batch_grads = [torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) for i, p in enumerate(params)]
        optimizer = make(params)
        for p, g in zip(params, batch_grads, strict=True):
            if hasattr(p, "grad_dtype"):
                p.grad_dtype = None
            p.grad = g
        with core_kernels.without_kernels() if not by_kernels else np.errstate():
            optimizer.step()
        results.append([p.detach() for p in params])
    assert largest_error(*results) <= 2**-7


@pytest.mark.parametrize("method", METHODS)
def test_zero_weights_zero_gradients_and_channels_last(method):
    foreach, *_ = errors_of(
        method, PLAIN[method], shapes=((6, 4), (5,), (4, 3, 3, 3), (3, 5)), zeros=(0, 1), zero_grads=(1, 3), channels_last=True
    )
    assert foreach < 3e-6


@pytest.mark.parametrize("method", METHODS)
def test_a_rate_as_a_tensor(method):
    for lr in (torch.tensor(0.02, dtype=torch.float64 if method == "LAMB" else torch.float32),):
        foreach, *_ = errors_of(method, {**PLAIN[method], "lr": lr}, shapes=((6, 4), (5,)))
        assert foreach < 3e-6


@pytest.mark.parametrize("method", METHODS)
def test_equal_bits_twice_and_from_addresses_that_are_not_aligned(method):
    """Elements of a chunk are added in an order that does not depend on where the tensor lies."""
    results = []
    for offset in (0, 0, 1):
        params = [torch.cat([torch.zeros(offset), p.detach().reshape(-1)])[offset:].view(p.shape) for p in start(SHAPES, torch.float32)]
        weights, state, _ = trained(
            lambda ps: METHODS[method](ps, **PLAIN[method]), [p.requires_grad_() for p in params], by_kernels=True, steps=1
        )
        results.append([*weights, *state])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_outside_of_a_tensor_is_written(method):
    shapes = ((6, 4), (5,), (3, 2050), (70, 3))
    around = [torch.full((torch.Size(s).numel() + 64,), 7.0) for s in shapes]
    params = []
    for full, shape in zip(around, shapes, strict=True):
        inside = full[32:-32]
        inside.copy_(torch.randn(inside.shape))
        params.append(inside.view(shape).requires_grad_())
    trained(lambda ps: METHODS[method](ps, **PLAIN[method]), params, by_kernels=True, steps=1)
    assert all(bool((full[:32] == 7).all() and (full[-32:] == 7).all()) for full in around)


def test_a_table_is_sent_again_only_when_addresses_change(monkeypatch):
    sent = []
    monkeypatch.setattr(tables, "_sent", lambda values, device: sent.append(values) or values)
    tables._tables.clear()
    params = start(((6, 4), (5,)), torch.float32)
    optimizer = LARS(params, lr=0.1)
    gradients(params, 0)
    optimizer.step()
    count = len(sent)
    optimizer.step()
    assert len(sent) == count
    params[0].grad = params[0].grad.clone()
    optimizer.step()
    assert len(sent) == count + 1


def by_kernels_now(optimizer, monkeypatch):
    """Whether a step is made by kernels."""
    made, run = [], triton.runtime.interpreter.InterpretedFunction.run
    with monkeypatch.context() as patch:
        patch.setattr(
            triton.runtime.interpreter.InterpretedFunction, "run", lambda self, *a, **kw: made.append(self) or run(self, *a, **kw)
        )
        optimizer.step()
    return bool(made)


@pytest.mark.parametrize("method", METHODS)
def test_while_a_graph_is_captured_nothing_is_sent(method, monkeypatch):
    """Kernels where the addresses are on the device, else the foreach path; a table that a graph reads is kept."""
    params = start(((6, 4), (5,)), torch.float32)
    optimizer = METHODS[method](params, **PLAIN[method])
    gradients(params, 0)
    tables._captured.clear()
    with monkeypatch.context() as patch:
        patch.setattr(core_kernels, "is_capturing", lambda device: True)
        assert not by_kernels_now(optimizer, monkeypatch)  # nothing was compiled yet
    assert by_kernels_now(optimizer, monkeypatch)
    monkeypatch.setattr(tables, "_sent", lambda values, device: pytest.fail("sent"))
    monkeypatch.setattr(core_kernels, "is_capturing", lambda device: True)
    assert by_kernels_now(optimizer, monkeypatch)
    assert len(tables._captured) == 1
    params[0].grad = params[0].grad.clone()
    before = params[1].detach().clone()
    assert not by_kernels_now(optimizer, monkeypatch)
    assert not torch.equal(params[1], before)


def test_kernels_that_do_not_work_are_warned_about_once(tmp_path):
    """The step is made all the same, from the state as it was."""
    with mutated(tmp_path, "lamb", "weights - rate * direction", "weights - rate * no_such_name"):
        params, plain = start(((6, 4), (5,)), torch.float32), start(((6, 4), (5,)), torch.float32)
        optimizer, other = LAMB(params), LAMB(plain)
        gradients(params, 0)
        gradients(plain, 0)
        with pytest.warns(UserWarning, match=r"the kernels of lamb do not work on cpu \(.*no_such_name.*foreach"):
            optimizer.step()
        optimizer.step()  # a second warning would be an error
        with core_kernels.without_kernels():
            other.step()
            other.step()
        assert all(torch.equal(p, q) for p, q in zip(params, plain, strict=True))


@contextmanager
def mutated(tmp_path, module, old, new):
    """The package's kernels with one line changed."""
    copy = tmp_path / "kernels"
    shutil.copytree(kernels.__path__[0], copy, ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / f"{module}.py"
    assert path.read_text().count(old) >= 1, old
    path.write_text(path.read_text().replace(old, new))
    names = [
        f"bigbatch.optim.kernels.{name}"
        for name in ("common", "lars", "lamb", "projected", "decide", "row_tiles", "row_moments", "row_step")
    ]
    before = list(kernels.__path__)
    try:
        for name in names:
            sys.modules.pop(name, None)
        kernels.__path__[:] = [str(copy)]
        importlib.invalidate_caches()
        yield
    finally:
        kernels.__path__[:] = before
        for name in names:
            sys.modules.pop(name, None)


MUTANTS = [
    ("LARS", "lars", "tl.sum(grads * grads, 0)", "tl.sum(grads * grads, 0) * 1.2"),
    ("LARS", "lars", "direction += decay * weights", "direction += 1.2 * decay * weights"),
    ("LARS", "lars", "direction *= rate", "direction *= 1.2 * rate"),
    ("LARS", "lars", "velocity = momentum *", "velocity = 1.2 * momentum *"),
    ("LARS", "lars", "weights - step", "weights - 1.2 * step"),
    ("LARS", "lars", "ratio_or_one(trust * weight_norm", "ratio_or_one(1.2 * trust * weight_norm"),
    ("LARS", "common", "tl.where(usable, tl.div_rn(", "1.2 * tl.where(usable, tl.div_rn("),
    ("LARS", "common", "mask=offsets < left, other=0.0", "mask=offsets < left - 1, other=0.0"),
    ("LARS", "common", "for at in range(begin, end, BLOCK):", "for at in range(begin, end - 1, BLOCK):"),
    ("LAMB", "lamb", "direction += decay * weights", "direction += 1.2 * decay * weights"),
    ("LAMB", "lamb", "tl.sum(weights * weights, 0), tl.sum(direction", "tl.sum(weights * weights, 0) * 1.2, tl.sum(direction"),
    ("LAMB", "lamb", "+ first * eps", "+ eps"),
    ("LAMB", "lamb", "weights - rate * direction", "weights - 1.2 * rate * direction"),
    ("LAMB", "lamb", "rate *= ratio_or_one(", "rate *= 1.2 * ratio_or_one("),
    ("LAMB", "common", "(first / tl.sqrt(second))", "(1.2 * first / tl.sqrt(second))"),
    ("LAMB", "common", "tl.store(step, t, mask=inside)", "tl.store(step, t + 1.0, mask=inside)"),
    ("LAMB", "common", "m + rise * (grads - m)", "m + 1.2 * rise * (grads - m)"),
    ("LAMB", "common", "b2 * v + rise_sq", "b2 * v + 1.2 * rise_sq"),
    ("AdamP", "decide", "tl.store(here + num_rows, wp, mask=is_row)", "tl.store(here + num_rows, 1.2 * wp, mask=is_row)"),
    ("AdamP", "decide", "tl.div_rn(delta, tl.sqrt_rn(length", "tl.div_rn(1000.0 * delta, tl.sqrt_rn(length"),
    ("AdamP", "decide", "kept + tl.where(layerwise", "kept + 1.2 * tl.where(layerwise"),
    ("AdamP", "decide", "tl.load(decays) * share", "tl.load(decays) * share * 1.2"),
    ("AdamP", "decide", "is_matrix = end > begin", "is_matrix = end >= begin"),
    ("AdamP", "row_step", "- lr * p", "- 1.2 * lr * p"),
    ("SGDP", "row_moments", "moment = momentum * moment + rise * signed", "moment = momentum * moment + 1.2 * rise * signed"),
    ("SGDP", "row_moments", "to + 3 * partials, tl.sum(p * weights, 1)", "to + 3 * partials, 1.2 * tl.sum(p * weights, 1)"),
    ("SGDP", "row_moments", "tl.store(to, tl.sum(grads * weights, 1)", "tl.store(to, 1000.0 + tl.sum(grads * weights, 1)"),
]


@pytest.mark.parametrize(("method", "module", "old", "new"), MUTANTS, ids=lambda value: str(value)[:40])
def test_a_wrong_line_shows(tmp_path, method, module, old, new):
    settings = {**PLAIN[method], **({"eps": 1e-2} if method == "LAMB" else {})}
    shapes = ((6, 4), (5,), (3, 5), (2, 2, 2))
    assert errors_of(method, settings, shapes=shapes, steps=3)[0] < 3e-6
    core_kernels._tried.clear()
    with mutated(tmp_path, module, old, new):
        try:
            foreach, *_ = errors_of(method, settings, shapes=shapes, steps=3)
        except AssertionError:
            return
    assert foreach > 1e-4
