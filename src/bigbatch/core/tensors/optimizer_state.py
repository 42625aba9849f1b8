"""Loading an optimizer's state so that its next step costs what a fresh optimizer's costs."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def load_optimizer_state(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Load a state dict, and put `step` where a fresh optimizer of these settings has it.

    torch's Adam, AdamW and their kind keep `step` on the CPU unless they are capturable or fused. A checkpoint that is read straight onto
    a device has it there, torch leaves it, and every later step would read it back once for each parameter, waiting for the device.

    Args:
        optimizer: Of the same parameters as the one that was saved.
        state_dict: From its `state_dict()`.

    >>> import torch
    >>> w = torch.zeros(2, requires_grad=True)
    >>> optimizer = torch.optim.AdamW([w])
    >>> load_optimizer_state(optimizer, {**optimizer.state_dict(), "state": {0: {"step": torch.tensor(3.0)}}})
    >>> optimizer.state[w]["step"]
    tensor(3.)
    """
    optimizer.load_state_dict(dict(state_dict))
    for group in optimizer.param_groups:
        if not {"capturable", "fused"} & set(group) or group.get("capturable") or group.get("fused"):
            continue
        for p in group["params"]:
            step = optimizer.state[p].get("step") if p in optimizer.state else None
            if isinstance(step, Tensor) and step.device.type != "cpu":
                optimizer.state[p]["step"] = step.cpu()
