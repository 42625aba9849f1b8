"""What the optimizers of this package share: they check parameters, keep float32 state, and see each tensor whole or as a shard."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from bigbatch.core.checks import UserError
from bigbatch.core.tensors.multi_tensor import has_dense_rows, has_layout_of, overlaps, same_layout
from bigbatch.core.tensors.sharding import dtensor_like, layout, local, redistribute_like
from bigbatch.optim.batches import Batch, BatchCache

Rate = float | Tensor
"""A learning rate; as a 0-dim tensor on the parameters' device it may change under a captured CUDA graph."""


_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
"""Types of state where it is not the parameter's own."""


def check_rate(name: str, value: float | Tensor) -> None:
    """Refuse a negative or non-finite setting; tensors of one element are taken as they are (looking would sync the device)."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise UserError(f"{name} of shape {tuple(value.shape)}: Tensor {name} must be 1-element; give a number or a tensor of one element")
    if not isinstance(value, Tensor) and not 0 <= value < float("inf"):
        raise UserError(f"{name} = {value}: must be a finite number, zero or above; give such a number")


def check_below_one(name: str, value: float) -> None:
    """Refuse a decay rate of an average outside [0, 1)."""
    if not 0 <= value < 1:
        raise UserError(f"{name} = {value}: must be at least 0 and below 1; 0.9 is usual")


class BaseOptimizer(Optimizer):
    """A torch optimizer that leaves its subclass one method to write, `update`.

    Gradients are never written, clipped or synchronised; nothing waits for the device. State is float32 for parameters of lower
    precision and the arithmetic is done there; float64 stays float64. Sharded parameters (DTensor) have sharded state.

    A parameter may lie in memory in any order of its dimensions, also with gaps, as a slice does; nothing outside of it is written. Where
    its rows do not follow each other in memory, the step is made on a contiguous copy: bit for bit what a contiguous parameter gets.
    Channels-last parameters are updated in place; their norms are summed in another order, so theirs is the same step to rounding.
    State follows its parameter by index, and in type, when either changes. Parameters whose elements share memory (`expand`) are refused.
    """

    state_names: tuple[str, ...] = ()

    def update(self, group: dict[str, Any], batch: Batch) -> None:
        """Apply one update to a batch of one group."""
        raise NotImplementedError

    def check_group(self, group: dict[str, Any]) -> None:
        """Refuse impossible settings of a group.

        Raises:
            UserError: Naming the setting, its value and the rule.
        """
        check_rate("lr", group["lr"])
        check_rate("weight_decay", group.get("weight_decay", 0.0))
        check_rate("eps", group.get("eps", 0.0))
        if "momentum" in group:
            check_below_one("momentum", group["momentum"])
        for i, beta in enumerate(group.get("betas", ())):
            check_below_one(f"betas[{i}]", beta)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking it.

        Raises:
            UserError: If the group is empty, or a setting or parameter can't be used.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            if not group["params"]:
                raise UserError(f"parameter group {len(self.param_groups) - 1} is empty: give each group a parameter, or leave it out")
            for p in group["params"]:
                if p.layout is not torch.strided:
                    raise UserError(f"a parameter of layout {p.layout}: must be dense; give p.to_dense()")
                _refuse_overlap(local(p))
                if not p.is_floating_point():
                    raise UserError(f"a parameter of type {p.dtype}: must be real floating point; use torch.view_as_real for complex ones")
            self.check_group(group)
            _check_meshes(p for g in self.param_groups for p in g["params"])
        except UserError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Args:
            closure: Re-evaluates the model and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            ValueError: If a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for number, group in enumerate(self.param_groups):
            settings = group
            if isinstance(lr := group["lr"], Tensor) and lr.ndim:
                settings = {**group, "lr": lr.view(())}
            for batch in self._batches(number, group):
                self.update(settings, batch)
                for parameter, copy in batch.copies:
                    parameter.copy_(copy)
        return loss

    def _batches(self, number: int, group: dict[str, Any]) -> list[Batch]:
        """The batches of a group, as the last step found them if nothing has changed."""
        names = self.state_names_of(group)
        if torch.compiler.is_compiling():
            return self._collect_batches(group, names)
        known: dict[int, Any] = self.__dict__.setdefault("_batch_cache", {})
        then, cache = known.get(number) or (None, None)
        if isinstance(cache, BatchCache) and then == names and (batches := cache.get(group["params"], self.state)) is not None:
            return batches
        batches = self._collect_batches(group, names)
        known[number] = (names, BatchCache(group["params"], batches)) if BatchCache.can_cache(batches) else None
        return batches

    def _collect_batches(self, group: dict[str, Any], names: tuple[str, ...]) -> list[Batch]:
        """Sort the parameters of a group that have a gradient into batches, checked, with the state that they lack."""
        alike: dict[Any, Batch] = {}
        for p in group["params"]:
            grad = p.grad
            if grad is None:
                continue
            if grad.layout is not torch.strided:
                raise UserError(f"a gradient of layout {grad.layout}: sparse gradients are not supported; use a dense embedding")
            held, where = p, None
            if isinstance(p, DTensor):
                held, where, grad = local(p), layout(p), local(redistribute_like(grad, p))
            if grad.shape != held.shape:
                raise _other_shape("a gradient", grad, held)
            own = held
            if not has_dense_rows(held):
                _refuse_overlap(held)
                held = held.contiguous()
            state = self.state[p]
            self._complete(state, names, p, held)
            self._complete_others(state, self.other_state_of(group, p), held)
            if not p.numel():
                continue
            if grad.dtype != p.dtype:
                grad = grad.to(torch.promote_types(p.dtype, torch.float32))
            key = (p.device, p.dtype, grad.dtype, where and (id(where[0]), where[1]))
            if key not in alike:
                alike[key] = Batch([], [], [], where, [], [], {})
            batch = alike[key]
            batch.params.append(held)
            batch.grads.append(same_layout(grad, held))
            batch.states.append(state)
            batch.wholes.append(p)
            if held is not own:
                batch.copies.append((own, held))
        return list(alike.values())

    def state_names_of(self, group: dict[str, Any]) -> tuple[str, ...]:  # noqa: ARG002
        """What is kept for each parameter of a group: tensors of its shape, and `step`, a scalar."""
        return self.state_names

    def other_state_of(self, group: dict[str, Any], p: Tensor) -> dict[str, tuple[int, ...]]:  # noqa: ARG002
        """What is kept for a parameter besides, of other shapes, whole on every rank: name to shape."""
        return {}

    def new_state(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:  # noqa: ARG002
        """How state of another shape begins."""
        return torch.zeros(shape, dtype=dtype, device=device)

    def _complete_others(self, state: dict[str, Any], shapes: dict[str, tuple[int, ...]], held: Tensor) -> None:
        wide = _WIDE.get(held.dtype, held.dtype)
        for name, shape in shapes.items():
            value = state.get(name)
            if value is None:
                state[name] = self.new_state(name, shape, wide, held.device)
            elif tuple(value.shape) != shape:
                raise _other_shape(f"state {name!r}", value, held)
            elif value.dtype != wide or value.device != held.device:
                state[name] = value.to(held.device, wide)

    def _complete(self, state: dict[str, Any], names: tuple[str, ...], p: Tensor, held: Tensor) -> None:
        """Give a parameter the state that it lacks (zeros), and what it has the type and memory order of what is updated."""
        wide = _WIDE.get(p.dtype, p.dtype)
        for name in names:
            value = state.get(name)
            if name == "step":
                if not isinstance(value, Tensor):  # of a parameter without state, or of an older version
                    state[name] = torch.full((), value or 0, dtype=torch.float32, device=p.device)
                elif value.device != p.device or value.dtype != torch.float32:  # kernels count it as what it begins as
                    state[name] = value.to(p.device, torch.float32)
                continue
            if value is None:
                state[name] = value = torch.zeros_like(p, dtype=wide, memory_format=torch.preserve_format)
            part = local(value)
            if part.shape != held.shape:
                raise _other_shape(f"state {name!r}", part, held)
            if part.dtype != wide or part.device != held.device or not has_layout_of(part, held):
                state[name] = dtensor_like(same_layout(part.to(held.device, wide), held), p)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, hooks included, but state has the precision that it would have begun with, whatever it was saved in.

        That is float32 for a bfloat16 parameter, to which torch would round it, and for a float32 one whose state was saved in bfloat16.
        """
        given: dict[str, Any] = {}

        def note(_: Optimizer, state_dict: dict[str, Any]) -> None:  # what the user's own hooks left
            given.update(state_dict)

        def restore(_: Optimizer) -> None:
            self._restore_precision(given)

        noting = self.register_load_state_dict_pre_hook(note)
        restoring = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            noting.remove()
            restoring.remove()

    def _restore_precision(self, given: dict[str, Any]) -> None:
        numbers = [number for group in given["param_groups"] for number in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for number, p in zip(numbers, params, strict=True):
            for name, value in given["state"].get(number, {}).items():
                if name == "step" and value is not None:
                    self.state[p][name] = torch.as_tensor(value, dtype=torch.float32).reshape(()).to(p.device, copy=True)
                elif isinstance(value, Tensor) and value.is_floating_point():
                    wide = _WIDE.get(p.dtype, p.dtype)
                    if self.state[p][name].dtype != wide or value.dtype != wide:
                        self.state[p][name] = value.to(p.device, wide, copy=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Settings that a group of another optimizer or version lacks are this optimizer's defaults."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)


def _refuse_overlap(p: Tensor) -> None:
    if overlaps(p):
        raise UserError(
            f"a parameter of shape {tuple(p.shape)} and strides {p.stride()}: its elements share memory, so a step can't be written; "
            "give p.contiguous(), or the tensor that it was expanded from"
        )


def _other_shape(what: str, value: Tensor, p: Tensor) -> UserError:
    return UserError(
        f"{what} of shape {tuple(value.shape)} for a parameter of shape {tuple(p.shape)}: must be alike; make a new optimizer when the "
        "shapes of parameters change, and load the state of the same parameters"
    )


def buffers(batch: Batch, name: str) -> list[Tensor]:
    """What this rank holds of a state tensor of every parameter of a batch."""
    if name not in batch.memo:
        batch.memo[name] = [local(state[name]) for state in batch.states]
    held: list[Tensor] = batch.memo[name]
    return held


def widened(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The tensors in a wider type: themselves if they have it."""
    return tensors if tensors[0].dtype == dtype else [t.to(dtype) for t in tensors]


def subtract(weights: list[Tensor], steps: list[Tensor]) -> None:
    """Take a step from each weight, computed in the type of the step and rounded once."""
    wide = widened(weights, steps[0].dtype)
    torch._foreach_sub_(wide, steps)
    if wide is not weights:
        torch._foreach_copy_(weights, wide)


def _check_meshes(params: Any) -> None:
    meshes = {id(p.device_mesh): p.device_mesh for p in params if isinstance(p, DTensor)}
    names = {(tuple(m.mesh_dim_names or ()), m.shape) for m in meshes.values()}
    roots = {tuple(m.mesh.flatten().tolist()) for m in meshes.values()}
    if len(names) > 1 and len(roots) > 1:
        raise UserError(
            f"parameters on {len(meshes)} different device meshes {sorted(map(str, names))}: must share one; "
            "give each mesh an optimizer of its own"
        )
