"""A device that is not the CPU, simulated in its memory, which notes whatever would make a program wait for a GPU.

`torch.device("simulated")` is torch's slot for devices of others (PrivateUse1) with a backend in Python: each operation is done by the CPU
on the tensor beneath, so that values are real, backward passes run in the device's own thread, and the library sees another device.
Noted as waits, by what CUDA does:

    item, tolist, bool, int, float of a tensor     the program needs a value
    copies to the host                             the same
    copies from the host, unless non_blocking      also what torch.tensor(..., device=...) does, and indexing with indices of the host
    nonzero, masks as indices, unique, equal ...   the shape or the answer depends on values
    checks of linear algebra                       whether a decomposition went well

Tensors of two devices in one operation are refused as CUDA refuses them; a 0-dim tensor of the host may go along as a number.
To be imported in a process of its own: a device can't be taken back.
"""

import sys
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "simulated"
NEEDS_VALUES = {
    "nonzero",
    "nonzero_static",
    "masked_select",
    "unique_dim",
    "unique_consecutive",
    "_unique",
    "_unique2",
    "unique_dim_consecutive",
}
NEEDS_VALUES |= {
    "_local_scalar_dense",
    "equal",
    "allclose",
    "bincount",
    "_linalg_check_errors",
    "_linalg_eigh",
    "_linalg_svd",
    "linalg_eig",
    "linalg_lstsq",
}
INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
ONE_DEVICE = {
    "cat",
    "stack",
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "convolution",
    "native_batch_norm",
    "index_add",
    "index_add_",
    "gather",
    "scatter",
}
"""Do not even take a 0-dim tensor of the host."""


class Wait(NamedTuple):
    """One wait for the device."""

    what: str  # of torch's operation
    where: str  # the nearest line of the package, or of whoever called torch
    phase: str  # what was going on, as the case says


class Log:
    """Waits so far."""

    waits: list[Wait] = []  # noqa: RUF012
    phase: str | None = None  # None: not noted


@contextmanager
def phase(name):
    """Note waits within, under this name; None notes none."""
    before, Log.phase = Log.phase, name
    try:
        yield
    finally:
        Log.phase = before


def note(what):
    if Log.phase is None:
        return
    frame, outer = sys._getframe(1), ""
    while frame is not None:
        path = frame.f_code.co_filename
        if "/bigbatch/" in path:
            Log.waits.append(Wait(what, f"{path.rpartition('/bigbatch/')[2]}:{frame.f_lineno} {frame.f_code.co_name}", Log.phase))
            return
        if not outer and "/torch/" not in path and path != __file__:
            outer = f"{path.rpartition('/')[2]}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    Log.waits.append(Wait(what, outer or "a backward pass", Log.phase))


class Simulated(Tensor):
    """A tensor on the device; `raw` is what the CPU computes with."""

    @staticmethod
    def __new__(cls, raw):
        looks = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype, "layout": raw.layout}
        self = Tensor._make_wrapper_subclass(cls, raw.size(), device=DEVICE, **looks)
        self.raw = raw
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def tolist(self):
        """torch refuses it to subclasses."""
        return self.cpu().tolist()

    def __format__(self, spec):
        return format(self.item(), spec) if not self.ndim else repr(self)

    def __repr__(self):
        return f"simulated {self.cpu()}"

    @property
    def data(self):
        """Without a graph."""
        return self.detach()

    @data.setter
    def data(self, value):
        torch._C.TensorBase.data.__set__(self, value)
        self.raw = value.raw

    def __deepcopy__(self, memo):
        copied = Simulated(self.raw.clone())
        copied = torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied
        copied.requires_grad_(self.requires_grad)
        copied.grad = None if self.grad is None else Simulated(self.grad.raw.clone())
        return memo.setdefault(id(self), copied)


def _run(func, args, kwargs):
    name = func.overloadpacket.__name__
    mine: list[Simulated] = []
    others: list[Tensor] = []
    raw_args, raw_kwargs = _beneath(args, mine, others), _beneath(kwargs, mine, others)
    device = kwargs.get("device")
    to_host = device is not None and torch.device(device).type == "cpu"
    _watch(name, args, kwargs, mine, others, to_host=to_host)
    if device is not None:
        raw_kwargs["device"] = torch.device("cpu")
    raw_kwargs.pop("pin_memory", None)
    result = func(*raw_args, **raw_kwargs)
    if to_host:
        return result.clone() if any(result is t.raw for t in mine) else result
    by_raw = {id(t.raw): t for t in mine} | {id(t): t for t in others}
    for t in mine:
        assert t.shape == t.raw.shape, f"{name}: changes a shape in place, which the simulated device can't"
    return _above(result, by_raw)


def _watch(name, args, kwargs, mine, others, *, to_host):
    if mine and (name in NEEDS_VALUES or (name == "repeat_interleave" and kwargs.get("output_size") is None)):
        note(name)
    elif name == "_to_copy":
        if mine and to_host:
            note("copy to the host")
        elif others and not kwargs.get("non_blocking"):
            note("copy from the host")
    elif name == "copy_":
        target, source = args[:2]
        if isinstance(target, Simulated) != isinstance(source, Simulated):
            to_device, asynchronous = isinstance(target, Simulated), args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            if not (to_device and asynchronous):
                note("copy from the host" if to_device else "copy to the host")
    elif name in INDEXES and mine:
        indices = [i for i in args[1] if i is not None]
        if any(i.dtype in (torch.bool, torch.uint8) for i in indices) and not (
            len(args) > 2 and len(indices) == 1 and args[2].numel() == 1
        ):
            note("a mask as index")  # of one value it is a masked_fill
        if any(not isinstance(i, Simulated) for i in indices):
            note("indices of the host")
    elif mine and any(t.ndim or name in ONE_DEVICE for t in others):
        raise RuntimeError(f"{name}: Expected all tensors to be on the same device, found {NAME}:0 and cpu")


def _beneath(value, mine, others):
    if isinstance(value, Simulated):
        mine.append(value)
        return value.raw
    if isinstance(value, Tensor):
        others.append(value)
    if type(value) in (list, tuple):
        return type(value)(_beneath(v, mine, others) for v in value)
    if type(value) is dict:
        return {key: _beneath(v, mine, others) for key, v in value.items()}
    return value


def _above(value, by_raw):
    if isinstance(value, Tensor):
        return by_raw[id(value)] if id(value) in by_raw else Simulated(value)
    if isinstance(value, list | tuple):
        made = [_above(v, by_raw) for v in value]
        return made if isinstance(value, list) else tuple(made)
    return value


class _Module(_DummyBackendModule):
    """What torch asks of a kind of device."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]

    def synchronize(self, device=None):
        """Nothing runs on its own."""

    def mem_get_info(self, device=None):
        """Room for every data set."""
        return 2**40, 2**40

    def get_rng_state(self, device=None):
        """Its random numbers are those of the CPU."""
        return torch.get_rng_state()

    def set_rng_state(self, state, device=None):
        """Nothing of its own."""


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
DEVICE = torch.device(NAME, 0)
_LIBRARY = torch.library.Library("_", "IMPL")
_LIBRARY.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")
_LIBRARY.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
_ATEN = torch.library.Library("aten", "IMPL")
for _name in (
    "arange",
    "arange.start",
    "arange.start_step",
    "linspace",
    "eye",
    "eye.m",
):  # torch's own begin with an empty tensor and lengthen it
    _packet, _, _overload = _name.partition(".")
    _op = getattr(getattr(torch.ops.aten, _packet), _overload or "default")
    _ATEN.impl(_name, lambda *args, _op=_op, **kwargs: _run(_op, args, kwargs), "PrivateUse1")
torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) makes a tensor of the host and copies it, as for CUDA
sys.modules["torch.optim.optimizer"]._foreach_supported_types.append(Simulated)  # as CUDA's tensors are
sys.setswitchinterval(1e-4)  # backward passes have a thread of their own
