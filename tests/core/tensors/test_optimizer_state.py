import pytest
import torch
from torch.utils._pytree import tree_map

from bigbatch.core.tensors.optimizer_state import load_optimizer_state


class OnDevice(torch.Tensor):
    """A tensor that says that it lies on a CUDA device; its copy to the CPU is an ordinary one."""

    @staticmethod
    def __new__(cls, value):
        return torch.Tensor._make_wrapper_subclass(cls, value.shape, dtype=value.dtype, device="cuda")

    def __init__(self, value):
        self.value = value

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = tree_map(lambda t: t.value if isinstance(t, OnDevice) else t, (args, kwargs or {}))
        device = kwargs.get("device")
        out = func(*args, **kwargs)
        return out if device is not None and torch.device(device).type == "cpu" else tree_map(OnDevice, out)


CLASSES = [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax, torch.optim.Adadelta]


def saved(cls, **settings):
    """State as a checkpoint has it that was read straight onto a device: all of it there."""
    w = torch.ones(3, requires_grad=True)
    optimizer = cls([w], **settings)
    w.grad = torch.ones(3)
    optimizer.step()
    state = optimizer.state_dict()
    state["state"] = {0: {**state["state"][0], "step": OnDevice(state["state"][0]["step"])}}
    return state


@pytest.mark.parametrize("cls", CLASSES)
def test_the_step_of_torchs_optimizers_lies_on_the_cpu_as_a_fresh_ones(cls):
    w = torch.ones(3, requires_grad=True)
    optimizer = cls([w])
    optimizer.load_state_dict(saved(cls))
    assert optimizer.state[w]["step"].device.type == "cuda"  # what torch does, and why this is needed
    load_optimizer_state(optimizer, saved(cls))
    step = optimizer.state[w]["step"]
    assert type(step) is torch.Tensor
    assert step.device.type == "cpu"
    assert step.item() == 1


@pytest.mark.parametrize("setting", ["capturable", "fused"])
def test_a_step_that_belongs_on_the_device_stays_there(setting, monkeypatch):
    optimizer = torch.optim.AdamW([w := torch.ones(3, requires_grad=True)])
    state = saved(torch.optim.AdamW)
    state["param_groups"][0][setting] = True
    monkeypatch.setattr(
        torch.optim.AdamW,
        "load_state_dict",
        lambda self, given: torch.optim.Optimizer.__setstate__(
            self,
            {
                "state": {w: given["state"][0]},
                "param_groups": [{**given["param_groups"][0], "params": [w]}],
            },
        ),
    )  # torch's own would copy to where the parameter lies, here the CPU
    load_optimizer_state(optimizer, state)
    assert optimizer.state[w]["step"].device.type == "cuda"


def test_others_are_left_alone():
    class Other(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.1})

    optimizer = Other([w := torch.ones(3, requires_grad=True)])
    load_optimizer_state(optimizer, {**optimizer.state_dict(), "state": {0: {"step": OnDevice(torch.tensor(2.0))}}})
    assert optimizer.state[w]["step"].device.type == "cuda"
    load_optimizer_state(optimizer, {**optimizer.state_dict(), "state": {}})
    assert not optimizer.state
