"""Parameters that lie in memory in other ways: what is computed follows the index, and nothing outside of a parameter is written."""

import copy
import pickle

import pytest
import torch
from tests.optim.test_contract import MAKERS, every, feed, steps, tensors
from torch import nn

from bigbatch.core.checks import UserError
from bigbatch.optim import LARS


def strided(values):
    """The values within a larger tensor: every dimension twice as long, every other element."""
    full = torch.full([2 * size for size in values.shape], 7.0, dtype=values.dtype)
    part = full[tuple(slice(None, None, 2) for _ in values.shape)] if values.ndim else full
    part.copy_(values)
    return full, part


def cut(values):
    """The first columns of a wider tensor, as structured pruning leaves them."""
    full = torch.full((*values.shape[:-1], values.shape[-1] + 3), 7.0, dtype=values.dtype)
    full[..., : values.shape[-1]] = values
    return full, full[..., : values.shape[-1]]


def transposed(values):
    full = values.movedim(0, -1).contiguous() if values.ndim else values.clone()
    return full, full.movedim(-1, 0) if values.ndim else full


def channels_last(values):
    full = values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values.clone()
    return full, full


LAYOUTS = {"strided": strided, "cut": cut, "transposed": transposed, "channels_last": channels_last}
GAPS = {"strided", "cut"}
COPIED = {*GAPS, "transposed"}


def trained(make, params, num=4):
    optimizer = make(params)
    steps(optimizer, params, 0, num)
    return [p.detach().clone() for p in params]


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_contiguous_one(make, layout, dtype):
    """Bit for bit where the step is made on a copy (rows apart in memory); to rounding where sums run in another order."""
    plain = tensors(dtype)
    want = trained(make, plain)
    fulls, parts = zip(*(LAYOUTS[layout](p.detach()) for p in tensors(dtype)), strict=True)
    outside = [full.clone() for full in fulls]
    params = [nn.Parameter(part) for part in parts]
    assert all(p.data_ptr() == part.data_ptr() for p, part in zip(params, parts, strict=True))
    got = trained(make, params)
    for a, b in zip(got, want, strict=True):
        if layout in COPIED:
            assert torch.equal(a, b)
        else:
            rounding = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-12}[dtype]
            torch.testing.assert_close(a, b, rtol=rounding, atol=rounding)
    if layout in GAPS:
        for full, before, part in zip(fulls, outside, parts, strict=True):
            after = full.clone()
            inside = torch.zeros_like(full, dtype=torch.bool).as_strided(part.shape, part.stride()).fill_(True)
            mask = torch.zeros(full.shape, dtype=torch.bool)
            mask.as_strided(part.shape, part.stride()).copy_(inside)
            assert torch.equal(after[~mask], before[~mask])
            assert bool((after[mask] != before[mask]).any())


@pytest.mark.parametrize("seed", range(6))
def test_random_layouts_write_nothing_outside(seed):
    """Slices with steps, permuted, of random shapes, in random order; the whole storage is compared."""
    random = torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high, (1,), generator=random))

    storages, params, plain = [], [], []
    for _ in range(5):
        ndim = number(1, 5)
        order = torch.randperm(ndim, generator=random).tolist()
        full = torch.randn([number(2, 6) for _ in range(ndim)], generator=random)
        part = full[tuple(slice(number(0, 2), None, number(1, 3)) for _ in range(ndim))].permute(order)
        storages.append((full, full.clone(), part))
        params.append(nn.Parameter(part))
        plain.append(nn.Parameter(part.clone(memory_format=torch.contiguous_format)))
    for name, make in MAKERS.items():
        copies = [(full.clone(), part) for full, _, part in storages]
        for (full, before, _), p, q in zip(storages, params, plain, strict=True):
            full.copy_(before)
            q.data.copy_(p.data)
        got, want = trained(make, params, 3), trained(make, plain, 3)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=f"{name}, seed {seed}")
        for (full, before, part), _ in zip(storages, copies, strict=True):
            mask = torch.zeros(full.shape, dtype=torch.bool)
            mask.as_strided(part.shape, part.stride(), part.storage_offset()).fill_(True)
            assert torch.equal(full[~mask], before[~mask]), f"{name}, seed {seed}"


def test_lars_leaves_what_was_pruned_alone():
    """The fused kernel took the slice for a dense tensor: it changed all elements outside and half of those inside were not."""
    full = torch.randn(8, 6, 3, 3)
    before, conv = full.clone(), nn.Conv2d(4, 8, 3, bias=False)
    conv.weight = nn.Parameter(full[:, :4])
    optimizer = LARS(conv.parameters(), lr=10.0)
    conv(torch.randn(2, 4, 5, 5)).square().mean().backward()
    optimizer.step()
    assert torch.equal(full[:, 4:], before[:, 4:])
    assert bool((full[:, :4] != before[:, :4]).all())


@every
def test_elements_that_share_memory_are_refused(make):
    """Two hundred steps of LARS used to end in a segmentation fault."""
    for shared in (torch.zeros(1, 4).expand(64, 4), torch.zeros(10).as_strided((4, 4), (2, 1))):
        with pytest.raises(UserError, match=r"its elements share memory.*give p.contiguous\(\)"):
            make([nn.Parameter(shared)])
    later = nn.Parameter(torch.randn(3, 4))
    optimizer = make([later])
    later.data = torch.zeros(1, 4).expand(3, 4)
    later.grad = torch.ones(3, 4)
    with pytest.raises(UserError, match="share memory"):
        optimizer.step()


@every
def test_an_expanded_gradient_is_an_ordinary_one(make):
    """As `p.sum().backward()` leaves it."""
    left, right = tensors(), tensors()
    a, b = make(left), make(right)
    for p, q in zip(left, right, strict=True):
        p.grad, q.grad = torch.full((), 0.5).expand(p.shape), torch.full(q.shape, 0.5)
    a.step()
    b.step()
    assert all(torch.equal(p, q) for p, q in zip(left, right, strict=True))


@every
def test_empty_and_scalar_parameters(make):
    """An empty one raised ZeroDivisionError."""
    scalar = nn.Parameter(torch.tensor(1.5))
    empty = nn.Parameter(torch.empty(0, 3))
    params, alone = [*tensors(), empty, scalar], [*tensors(), nn.Parameter(torch.tensor(1.5))]
    together, without = make(params), make(alone)
    for step in range(3):
        for some, optimizer in ((params, together), (alone, without)):
            feed([p for p in some if p.numel()], step)
            empty.grad = torch.empty(0, 3)
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip([p for p in params if p.numel()], alone, strict=True))
    assert scalar.item() != 1.5


@every
@pytest.mark.parametrize("resumed", [False, True])
def test_state_follows_the_index_when_the_memory_format_changes(make, resumed):
    """`model.to(memory_format=torch.channels_last)` in mid-run, or a resume into such a model: LAMB was off by 0.35, AdamP by 1.1."""
    plain, changed = tensors(dtype=torch.float64), tensors(dtype=torch.float64)
    left, right = make(plain), make(changed)
    steps(left, plain, 0, 3)
    steps(right, changed, 0, 3)
    if resumed:
        state = copy.deepcopy(right.state_dict())
        changed = [p.detach().clone().requires_grad_() for p in changed]
    for p in changed:
        if p.ndim == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
        elif p.ndim == 2:
            p.data = p.data.T.contiguous().T
    if resumed:
        right = make(changed)
        right.load_state_dict(state)
    steps(left, plain, 3, 6)
    steps(right, changed, 3, 6)
    for p, q in zip(plain, changed, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-11, atol=1e-12)


@every
def test_a_copy_and_a_pickle_take_the_same_step(make):
    """Muon's used to raise AttributeError."""
    params = tensors()
    optimizer = make(params)
    steps(optimizer, params, 0, 2)
    clones = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    steps(optimizer, params, 2, 3)
    for clone in clones:
        theirs = [p for group in clone.param_groups for p in group["params"]]
        own = [p for group in optimizer.param_groups for p in group["params"]]
        for p, q in zip(theirs, own, strict=True):
            p.grad = q.grad.clone()
        clone.step()
        assert all(torch.equal(p, q) for p, q in zip(theirs, own, strict=True))


def test_lars_without_momentum():
    """The fused kernel refuses a buffer then."""
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    w.grad = torch.tensor([0.0, 10.0])
    LARS([w], lr=1.0, momentum=0.0, trust_coefficient=0.1).step()
    assert w.tolist() == pytest.approx([3.0, 3.5])


@pytest.mark.parametrize("name", ["AdamP", "SGDP", "SGDP nesterov"])
def test_a_transposed_parameter_is_projected_by_its_own_rows(name):
    """Gradients at right angles to each row: the projection took rows in the order of memory, and mixed them."""
    results = []
    for transposed in (False, True):
        torch.manual_seed(0)
        w = torch.randn(3, 5, dtype=torch.float64)
        g = torch.randn(3, 5, dtype=torch.float64)
        g -= (g * w).sum(1, keepdim=True) / w.square().sum(1, keepdim=True) * w
        p = nn.Parameter(w.T.contiguous().T if transposed else w)
        optimizer = MAKERS[name]([p])
        for _ in range(3):
            p.grad = g.clone()
            optimizer.step()
        results.append(p.detach().clone())
    assert torch.equal(*results)


@every
def test_a_parameter_of_another_shape_is_refused(make):
    """State of the old shape was handed to a kernel: "free(): invalid next size"."""
    params = tensors()
    optimizer = make(params)
    steps(optimizer, params, 0, 1)
    params[0].grad = None
    params[0].data = torch.zeros(60, 40)
    params[0].grad = torch.ones(60, 40)
    with pytest.raises(UserError, match=r"of shape \(6, 4\) for a parameter of shape \(60, 40\): must be alike"):
        optimizer.step()


@every
def test_a_parameter_whose_precision_changes_takes_its_state_along(make):
    """`model.float()` after steps in float64."""
    params = tensors(torch.float64)
    optimizer = make(params)
    steps(optimizer, params, 0, 2)
    for p in params:
        p.grad, p.data = None, p.data.float()
    steps(optimizer, params, 2, 4)
    assert all(value.dtype == torch.float32 for state in optimizer.state.values() for value in state.values())
    assert all(bool(p.isfinite().all()) for p in params)


@every
def test_what_state_lacks_begins_at_zero(make):
    """torch's SGD without momentum saves `momentum_buffer: None`; another optimizer's state has other names."""
    params, plain = tensors(), tensors()
    optimizer, fresh = make(params), make(plain)
    state = optimizer.state_dict()
    state["state"] = {number: {"momentum_buffer": None} for number in range(len(params))}
    optimizer.load_state_dict(state)
    steps(optimizer, params, 0, 2)
    steps(fresh, plain, 0, 2)
    assert all(torch.equal(p, q) for p, q in zip(params, plain, strict=True))


def test_interleaved_elements_do_not_share_memory():
    p = nn.Parameter(torch.arange(8.0).as_strided((3, 2), (2, 3)))
    LARS([p], lr=1.0)
    with pytest.raises(UserError, match="of layout torch.sparse_coo: must be dense"):
        LARS([nn.Parameter(torch.eye(3).to_sparse())], lr=1.0)
