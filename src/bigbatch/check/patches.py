"""What is changed in torch within a process of the checker: calls are counted, suspects removed, and the order of samples made the same."""

import functools
import sys
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import BatchSampler, DataLoader, RandomSampler
from torch.utils.data.distributed import DistributedSampler

from bigbatch.check.arrangement import Setup
from bigbatch.check.watch import Watch

DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
IN_MODULES = {F: (*DROPOUTS, "scaled_dot_product_attention", "batch_norm"), nn.utils: ("clip_grad_norm_", "clip_grad_value_")}
"""Functions that are wrapped, and that a loop's module may have imported by name."""
LIBRARIES = ("sympy", "mpmath", "numpy", "torch._", "torch.distributed")
"""Modules that need not be searched for these names."""
FUNCTIONS = FunctionType | BuiltinFunctionType


def patch(setup: Setup, watch: Watch) -> None:
    """Change torch in this process, which does nothing else: for good."""
    functions = {(owner, name): getattr(owner, name) for owner, names in IN_MODULES.items() for name in names}
    _patch_loaders(setup, watch)
    _patch_samplers(setup, watch)
    _patch_dropout(setup, watch)
    _patch_batch_norm(setup, watch)
    _patch_clipping(setup, watch)
    _patch_schedulers(setup, watch)
    autocast = torch.amp.autocast_mode.autocast
    _wrap(autocast, "__init__", lambda init: lambda self, *args, **kwargs: init(self, *args, **{**kwargs, "enabled": False}))
    _replace_everywhere({original: getattr(owner, name) for (owner, name), original in functions.items()})


def _wrap(owner: Any, name: str, wrapper: Callable[[Any], Callable[..., Any]]) -> None:
    """Put a wrapper in the place of a function of a class or a module."""
    original = getattr(owner, name)
    setattr(owner, name, functools.wraps(original)(wrapper(original)))


def _replace_everywhere(replaced: dict[Any, Any]) -> None:
    """Also where other modules have imported these functions by name."""
    for path, module in list(sys.modules.items()):
        names = vars(module) if isinstance(module, ModuleType) and not path.startswith(LIBRARIES) else {}
        for key, value in list(names.items()):
            if isinstance(value, FUNCTIONS) and value in replaced:
                names[key] = replaced[value]


def _patch_loaders(setup: Setup, watch: Watch) -> None:
    def wrapper(init: Any) -> Callable[..., None]:
        def made(self: Any, *args: Any, **kwargs: Any) -> None:
            here = {"num_workers": 0, "prefetch_factor": None, "persistent_workers": False, "multiprocessing_context": None, "timeout": 0}
            kwargs |= {key: value for key, value in here.items() if key in kwargs}  # in this process, where draws are seen
            init(self, *args, **kwargs)

        return made

    def batches(init: Any) -> Callable[..., None]:
        def made(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            watch.calls["drop_last"] += bool(self.drop_last)
            self.drop_last = self.drop_last and "drop_last" not in setup.removed

        return made

    _wrap(DataLoader, "__init__", wrapper)
    _wrap(BatchSampler, "__init__", batches)


def _patch_samplers(setup: Setup, watch: Watch) -> None:
    """Both give one permutation per epoch, so that one worker and several draw the same samples, whatever sampler each of them has."""

    def random(original: Any) -> Callable[..., Iterator[int]]:
        def iterate(self: Any) -> Iterator[int]:
            if self.replacement or self.num_samples != len(self.data_source):
                yield from original(self)
                return
            self.bigbatch_epoch = getattr(self, "bigbatch_epoch", -1) + 1
            yield from torch.randperm(self.num_samples, generator=torch.Generator().manual_seed(self.bigbatch_epoch)).tolist()

        return iterate

    def distributed(original: Any) -> Callable[..., Iterator[int]]:
        def iterate(self: Any) -> Iterator[int]:
            watch.calls["set_epoch"] += self.shuffle
            seen = self.__dict__.setdefault("bigbatch_epochs", {})
            told = (len(seen), "by us") if "set_epoch" in setup.removed else self.epoch
            epoch, seed = self.epoch, self.seed
            self.epoch, self.seed = seen.setdefault(told, len(seen)), 0
            try:
                return iter(list(original(self)))
            finally:
                self.epoch, self.seed = epoch, seed

        return iterate

    _wrap(RandomSampler, "__iter__", random)
    _wrap(DistributedSampler, "__iter__", distributed)


def _patch_dropout(setup: Setup, watch: Watch) -> None:
    removed = "dropout" in setup.removed

    def wrapper(original: Any) -> Callable[..., Tensor]:
        def dropout(input: Tensor, p: float = 0.5, training: bool = True, *args: Any, **kwargs: Any) -> Any:
            watch.calls["dropout"] += training and p > 0
            return original(input, p, training and not removed, *args, **kwargs)

        return dropout

    def attention(original: Any) -> Callable[..., Tensor]:
        def call(
            query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, *args: Any, **kwargs: Any
        ) -> Any:
            watch.calls["dropout"] += dropout_p > 0
            return original(query, key, value, attn_mask, 0.0 if removed else dropout_p, *args, **kwargs)

        return call

    def recurrent(init: Any) -> Callable[..., None]:
        def made(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            watch.calls["dropout"] += self.dropout > 0
            self.dropout = 0.0 if removed else self.dropout

        return made

    for name in DROPOUTS:
        _wrap(F, name, wrapper)
    _wrap(F, "scaled_dot_product_attention", attention)
    _wrap(nn.RNNBase, "__init__", recurrent)


def _patch_batch_norm(setup: Setup, watch: Watch) -> None:
    """Removed: statistics are not those of the micro-batch but the running ones, which stay as they are."""

    def wrapper(original: Any) -> Callable[..., Tensor]:
        def batch_norm(
            input: Tensor,
            running_mean: Tensor | None,
            running_var: Tensor | None,
            weight: Tensor | None = None,
            bias: Tensor | None = None,
            training: bool = False,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            watch.calls["batch_norm"] += training
            if "batch_norm" in setup.removed and training:
                training = False
                if running_mean is None or running_var is None:
                    running_mean, running_var = input.new_zeros(input.shape[1]), input.new_ones(input.shape[1])
            return original(input, running_mean, running_var, weight, bias, training, *args, **kwargs)

        return batch_norm

    _wrap(F, "batch_norm", wrapper)


def _patch_clipping(setup: Setup, watch: Watch) -> None:
    removed = "clipping" in setup.removed

    def by_norm(original: Any) -> Callable[..., Tensor]:
        def clip_grad_norm_(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Any:
            parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            watch.calls["clipping"] += 1
            watch.prepare_(parameters)
            bound = float("inf") if removed else float(max_norm) if setup.max_norm is None else min(float(max_norm), setup.max_norm)
            norm = original(parameters, bound, *args, **kwargs)
            watch.norms.append(float(norm))
            return norm

        return clip_grad_norm_

    def by_value(original: Any) -> Callable[..., None]:
        def clip_grad_value_(parameters: Any, clip_value: float, *args: Any, **kwargs: Any) -> None:
            watch.calls["clipping"] += 1
            parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            watch.prepare_(parameters)
            original(parameters, float("inf") if removed else clip_value, *args, **kwargs)

        return clip_grad_value_

    _wrap(nn.utils, "clip_grad_norm_", by_norm)
    _wrap(nn.utils, "clip_grad_value_", by_value)


def _patch_schedulers(setup: Setup, watch: Watch) -> None:
    """Removed: of the calls of one scheduler's `step` after a step of an optimizer, the first alone counts; none before the first."""
    inside = False  # schedulers of schedulers
    classes: list[Any] = [LRScheduler, ReduceLROnPlateau]
    for each in classes:
        classes += [sub for sub in each.__subclasses__() if sub not in classes]

    def wrapper(original: Any) -> Callable[..., None]:
        def step(self: Any, *args: Any, **kwargs: Any) -> None:
            nonlocal inside
            state = self.__dict__
            if inside or not state.get("bigbatch_made"):
                original(self, *args, **kwargs)
                return
            watch.calls["scheduler"] += 1
            if "scheduler" in setup.removed and state.get("bigbatch_at", 0) == watch.num_steps:
                return
            state["bigbatch_at"], inside = watch.num_steps, True
            try:
                original(self, *args, **kwargs)
            finally:
                inside = False

        return step

    def begin(init: Any) -> Callable[..., None]:
        def made(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            self.bigbatch_made = True  # its own first step, from within, counts for nothing

        return made

    for each in classes:
        if "step" in each.__dict__:
            _wrap(each, "step", wrapper)
        if "__init__" in each.__dict__:
            _wrap(each, "__init__", begin)
