r"""The noise scale as an optimizer sees it: of gradients multiplied by what its step multiplies them by.

Paper:   Qiao et al. 2020, Pollux: Co-adaptive Cluster Scheduling for Goodput-Optimized Deep Learning, arXiv:2008.12260, Section 3.1.
Formula: phi = tr(P S P') / |P G|^2,   P the preconditioner at the present state:
             Adam, AdamW, LAMB, AdamP:   P = 1 / (sqrt(v / (1 - beta_2^t)) + eps)          elementwise
             Muon:                       P = (M M')^(-1/2) times the step's factor         M the momentum of each matrix
Units:   samples, in phi.
Differs: for Muon, which the paper does not treat: its step O = (Z Z')^(-1/2) Z is linear in a gradient once (M M')^(-1/2) is held.
         Singular values of M below |M| / a^5 are cut there, which is what five Newton-Schulz iterations reach. Groups are weighed by
         their peak rates. Updates at which a parameter has no state yet tell nothing.
Limits:  McCandlish et al. report mixed results for preconditioned noise scales; layer-wise trust ratios are left out.
"""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bigbatch.core.checks import UserError
from bigbatch.core.paper import Paper
from bigbatch.core.tensors.matrices import as_matrices, from_matrices

PAPER = Paper(
    method="Preconditioned noise scale",
    title="Pollux: Co-adaptive Cluster Scheduling for Goodput-Optimized Deep Learning",
    authors="Qiao et al.",
    year=2020,
    arxiv="2008.12260",
    where="Section 3.1",
)
GREATEST_GAIN = 3.4445**5
"""Of a singular value, relative to the norm of the matrix, in five Newton-Schulz iterations: a^5."""


def adam_preconditioned(gradient: Tensor, exp_avg_sq: Tensor, *, step: float | Tensor, beta2: float, eps: float) -> Tensor:
    """The gradient as an Adam step weighs it; a `step` that is a tensor is not read.

    >>> adam_preconditioned(torch.tensor([6.0]), torch.tensor([9.0]), step=1, beta2=0.0, eps=0.0)
    tensor([2.])
    """
    weighed: Tensor = gradient / ((exp_avg_sq / (1 - beta2**step)).sqrt() + eps)
    return weighed


def muon_preconditioned(gradient: Tensor, momentum: Tensor) -> Tensor:
    """(M M')^(-1/2) g for stacks of matrices, shape (..., A, B): orthogonal where the gradient is the momentum.

    >>> m = torch.diag(torch.tensor([3.0, 4.0]))
    >>> muon_preconditioned(m, m).round(decimals=4)
    tensor([[1., 0.],
            [0., 1.]])
    """
    if momentum.size(-2) > momentum.size(-1):
        return muon_preconditioned(gradient.mT, momentum.mT).mT
    wide = torch.promote_types(momentum.dtype, torch.float32)
    values, vectors = torch.linalg.eigh((momentum @ momentum.mT).to(wide))
    least = (torch.linalg.matrix_norm(momentum.to(wide)) / GREATEST_GAIN).unsqueeze(-1)
    scales = 1 / values.clamp_min(0).sqrt().maximum(least)
    weighed: Tensor = (vectors * scales.unsqueeze(-2)) @ (vectors.mT @ gradient.to(wide))
    return weighed


class Preconditioned:
    """For `NoiseScaleMonitor(precondition=...)`: gradients as an optimizer weighs them.

    Costs three passes over each parameter in every backward pass (Adam), or an eigenvalue decomposition of each matrix (Muon), for which a
    GPU is waited for; so it is for rates that are tensors on it.

    Args:
        model: What the optimizer trains.
        optimizer: With second moments (`exp_avg_sq`) or Muon's groups; read, never changed.

    Raises:
        UserError: If the optimizer has neither, or does not train all of the model.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._parameters = dict(model.named_parameters())
        self._optimizer = optimizer
        self._groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for name, p in self._parameters.items():
            if p.requires_grad and id(p) not in self._groups:
                raise UserError(f"parameter {name}: is not in the optimizer, so nothing weighs its gradient; freeze it, or give it too")
        self._rate = max(self._rate_of(group) for group in optimizer.param_groups)
        if not any("betas" in group or "orthogonalise" in group for group in optimizer.param_groups):
            raise UserError(
                f"{type(optimizer).__name__}: has no preconditioner; it steps along the gradient, whose plain noise scale is the right one"
            )

    def __call__(self, name: str, gradient: Tensor) -> Tensor:
        """The gradient of a parameter as the next step weighs it; NaN while there is no state."""
        p = self._parameters[name]
        state, group = self._optimizer.state.get(p), self._groups[id(p)]
        if not state:
            return gradient * float("nan")
        weight = self._rate_of(group) / self._rate
        if "momentum_buffer" in state:
            laid_out = group["matrices"], group.get("layout", "rows")
            made = muon_preconditioned(as_matrices(gradient, *laid_out), as_matrices(state["momentum_buffer"], *laid_out))
            rows, columns = made.shape[-2:]
            factor = 0.2 * max(rows, columns) ** 0.5 if group["scale"] == "matched_rms" else max(1.0, rows / columns) ** 0.5
            return from_matrices(made, p.shape, *laid_out).mul(factor * weight)
        step = state["step"].double() if isinstance(state["step"], Tensor) else state["step"]
        adam = {"step": step, "beta2": float(group["betas"][1]), "eps": group["eps"]}
        return adam_preconditioned(gradient, state["exp_avg_sq"], **adam) * weight

    @staticmethod
    def _rate_of(group: dict[str, object]) -> float:
        return float(group.get("initial_lr", group["lr"]))  # type: ignore[arg-type]
