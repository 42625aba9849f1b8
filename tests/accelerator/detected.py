"""What the simulated device calls a wait, and what not: each by itself."""

import pytest
import torch
from tests.accelerator.simulated import DEVICE, phase

X, HOST = torch.arange(16.0).view(4, 4).to(DEVICE), torch.ones(4, 4)
MASK = X > 3
WAITS = {
    "item": lambda: X.sum().item(),
    "float": lambda: float(X[0, 0]),
    "bool": lambda: bool(MASK.any()),
    "tolist": lambda: X.tolist(),
    "cpu": lambda: X.cpu(),
    "to the host": lambda: X.to("cpu", non_blocking=True),
    "copy to the host": lambda: HOST.clone().copy_(X),
    "to the device": lambda: HOST.to(DEVICE),
    "tensor": lambda: torch.tensor([1.0, 2.0], device=DEVICE),
    "tensor of a number": lambda: torch.tensor(1.0, device=DEVICE),
    "as_tensor": lambda: torch.as_tensor(1.0, device=DEVICE),
    "new_tensor": lambda: X.new_tensor([1.0]),
    "copy from the host": lambda: X.clone().copy_(HOST),
    "a list as index": lambda: X[[0, 1]],
    "indices of the host": lambda: X[torch.tensor([0, 1])],
    "a mask as index": lambda: X[MASK],
    "masked_select": lambda: X.masked_select(MASK),
    "nonzero": lambda: MASK.nonzero(),
    "where without values": lambda: torch.where(MASK),
    "argwhere": lambda: torch.argwhere(MASK),
    "unique": lambda: X.unique(),
    "equal": lambda: torch.equal(X, X),
    "allclose": lambda: torch.allclose(X, X),
    "repeat_interleave": lambda: torch.repeat_interleave(torch.arange(4, device=DEVICE)),
    "eigh": lambda: torch.linalg.eigh(X),
    "printing": lambda: str(X),
}
NONE = {
    "arithmetic": lambda: (X @ X).add_(1).mul(2).sum(),
    "a number of the host": lambda: X + torch.ones(()),
    "to the device, not blocking": lambda: HOST.to(DEVICE, non_blocking=True),
    "copy from the host, not blocking": lambda: X.clone().copy_(HOST, non_blocking=True),
    "full": lambda: torch.full((), 3.0, device=DEVICE),
    "arange": lambda: torch.arange(4, device=DEVICE),
    "numbers as indices": lambda: X[0, 1:3],
    "indices of the device": lambda: X[torch.arange(2, device=DEVICE)],
    "a number at a mask": lambda: X.clone().__setitem__(MASK, 0.0),
    "where": lambda: torch.where(MASK, X, 0),
    "foreach": lambda: torch._foreach_mul([X, X], 2.0),
    "repeat_interleave of known size": lambda: torch.repeat_interleave(torch.arange(4, device=DEVICE), output_size=6),
    "a backward pass": lambda: X.clone().requires_grad_().square().sum().backward(),
}
REFUSED = {
    "add": lambda: X + HOST,
    "matmul": lambda: X @ HOST,
    "cat": lambda: torch.cat([X, HOST]),
    "stack with a number": lambda: torch.stack([X[0, 0], torch.ones(())]),
    "foreach": lambda: torch._foreach_add([X], [HOST]),
}


def _noted(action):
    with phase("noted"):
        action()


def _refused(action):
    with phase(None), pytest.raises(RuntimeError, match="same device"):
        action()


CASES = {**{f"waits: {name}": lambda a=action: _noted(a) for name, action in WAITS.items()}}
CASES |= {f"does not wait: {name}": lambda a=action: _noted(a) for name, action in NONE.items()}
CASES |= {f"refused: {name}": lambda a=action: _refused(a) for name, action in REFUSED.items()}
