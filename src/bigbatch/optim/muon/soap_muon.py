r"""Muon with SOAP's preconditioning before its orthogonalisation: directions in which the gradient is always large count for less.

Paper:   Vyas et al. 2024, SOAP: Improving and Stabilizing Shampoo using Adam, arXiv:2409.11321, Algorithm 3. Before Muon's
         orthogonalisation it comes from the step-count records of modded-nanogpt, track 3 (2026), without a paper.
Formula: for a matrix w of A x B with gradient g and Muon's momentum Z, at update t, b = beta2,
             L <- b L + (1 - b) g g',     R <- b R + (1 - b) g' g
             Q_L, Q_R <- the orthogonal factors of QR((L + l I) Q_L), QR((R + r I) Q_R)     one step of orthogonal iteration, from I;
                                                                                            l, r: a thousandth of the mean eigenvalue
             V <- b V + (1 - b) (Q_L' g Q_R)^2
             S = sqrt(V / (1 - b^t)),     P = Q_L (Q_L' Z Q_R / (S + damping mean(S))) Q_R'
             O = NS(P), then as Muon: w <- w (1 - eta lambda) - eta 0.2 sqrt(max(A, B)) O
Differs: from SOAP: the basis turns at every update, and V is not turned with it; beta2 is 0.9, for hundreds of updates in place of many
         thousands; the first update is a step. The damping is this project's: without it, directions in which gradients are zero but for
         rounding move as far as all others. A side longer than `longest` keeps its own basis (SOAP's `max_precond_dim`), and so does that
         of a model's raw inputs (`soap_muon_groups`), whose rare directions are noise more often than signal: studies/leaderboard.
         The state of the preconditioner is whole on every rank, of sharded parameters too, and ranks do not share its work out.

State of a matrix, in numbers: 2 A^2 + 2 B^2 + 2 A B, where Muon's has A B.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from bigbatch.core.checks import UserError, unknown
from bigbatch.core.paper import Paper
from bigbatch.core.tensors.groups import Overrides
from bigbatch.core.tensors.matrices import as_matrices, matrix_shape
from bigbatch.core.tensors.sharding import full_tensor_like
from bigbatch.optim.base import Rate, check_below_one, check_rate
from bigbatch.optim.batches import Batch
from bigbatch.optim.muon.muon import Muon
from bigbatch.optim.muon.muon_split import muon_groups
from bigbatch.optim.muon.newton_schulz import orthogonalise

PAPER = Paper(
    method="SOAP before Muon",
    title="SOAP: Improving and Stabilizing Shampoo using Adam",
    authors="Vyas et al.",
    year=2024,
    arxiv="2409.11321",
    where="Algorithm 3",
    study="studies/leaderboard",
)

SIDES = ("both", "outputs")
SHIFT = 1e-3
"""Added to the eigenvalues of L and R where their bases turn, in units of the mean one. Without it, QR fills up what gradients have not
reached yet with directions that rounding chooses, and one worker's steps are not those of several."""


def soap_muon_groups(
    model: nn.Module,
    *,
    lr: float,
    adam_lr: float,
    weight_decay: float = 0.0,
    head: str | None = None,
    overrides: Overrides | None = None,
) -> list[dict[str, Any]]:
    """The groups of `muon_groups`, which see; the matrix that multiplies raw inputs has one of its own, with sides="outputs".

    That is the model's first weight of more than one dimension, if it is one of Muon's: tokens meet an embedding, and images of vision
    transformers a patch embedding first, which are not.

    >>> groups = soap_muon_groups(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2)), lr=0.05, adam_lr=0.02)
    >>> [(len(g["params"]), g.get("sides")) for g in groups]
    [(1, 'outputs'), (1, None), (4, None)]
    """
    groups = muon_groups(model, lr=lr, adam_lr=adam_lr, weight_decay=weight_decay, head=head, overrides=overrides)
    first = next((p for p in model.parameters() if p.ndim > 1), None)
    split = []
    for group in groups:
        raw = [p for p in group["params"] if p is first] if group["orthogonalise"] and "sides" not in group else []
        rest = [p for p in group["params"] if p is not first] if raw else group["params"]
        split += [{**group, "params": raw, "sides": "outputs"}] if raw else []
        split += [{**group, "params": rest}] if rest else []
    return split


class SoapMuon(Muon):
    """Muon of a momentum that is preconditioned by SOAP; see the module's docstring for the rule.

    Args:
        params: Groups such as `muon_groups` builds; as `Muon`.
        lr: eta.
        momentum: As `Muon`.
        nesterov: As `Muon`.
        weight_decay: As `Muon`.
        betas: Of AdamW, for the rest.
        beta2: Decay of the preconditioner's moments an update, in [0, 1).
        damping: Of the preconditioner, in units of the mean of S.
        eps: Of AdamW, and the least that the preconditioner divides by.
        longest: Sides of more rows or columns keep their own basis.
        sides: Which sides of a group's matrices are preconditioned: "both" or "outputs", the rows.
        steps: Newton-Schulz iterations.
        scale: As `Muon`.
        dtype: Type to orthogonalise in; the preconditioner is float32, and float64 for parameters of float64.
        orthogonalise: Whether a group is for matrices.
        matrices: As `Muon`.
        layout: As `Muon`.
        maximize: Climb instead of descend.

    Raises:
        UserError: If a setting is out of range or a parameter can't be used.

    >>> w = torch.nn.Parameter(torch.zeros(2, 2))
    >>> optimizer = SoapMuon([w], lr=1.0, damping=0.0, dtype=torch.float32)
    >>> w.grad = torch.diag(torch.tensor([100.0, 1.0]))  # one step of both directions is as long
    >>> optimizer.step()
    >>> (w[0, 0] / w[1, 1]).item()
    1.0
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Rate = 0.02,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        beta2: float = 0.9,
        damping: float = 0.1,
        eps: float = 1e-8,
        longest: int = 8192,
        sides: Literal["both", "outputs"] = "both",
        steps: int = 5,
        scale: Literal["matched_rms", "original"] = "matched_rms",
        dtype: torch.dtype | None = None,
        orthogonalise: bool = True,
        matrices: int = 1,
        layout: str = "rows",
        maximize: bool = False,
    ) -> None:
        self.own_settings = {"beta2": beta2, "damping": damping, "longest": longest, "sides": sides}
        shared: dict[str, Any] = {"betas": betas, "eps": eps, "steps": steps, "scale": scale, "dtype": dtype, "maximize": maximize}
        of_groups: dict[str, Any] = {"orthogonalise": orthogonalise, "matrices": matrices, "layout": layout}
        super().__init__(params, lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, **shared, **of_groups)

    def check_group(self, group: dict[str, Any]) -> None:
        """Refuse impossible settings of a group."""
        super().check_group(group)
        check_below_one("beta2", group["beta2"])
        if group["longest"] < 0:
            raise UserError(f"longest = {group['longest']}: must be at least 0, with which every side keeps its own basis")
        if group["sides"] not in SIDES:
            raise UserError(unknown("sides", group["sides"], SIDES))
        check_rate("damping", group["damping"])

    def state_names_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Of matrices, also the number of updates."""
        names = super().state_names_of(group)
        return (*names, "step") if group["orthogonalise"] else names

    def other_state_of(self, group: dict[str, Any], p: Tensor) -> dict[str, tuple[int, ...]]:
        """V, and of each side that is preconditioned the mean L or R and its basis."""
        if not group["orthogonalise"]:
            return {}
        n, rows, columns = matrix_shape(p.shape, group["matrices"], group["layout"])
        shapes: dict[str, tuple[int, ...]] = {"second": (n, rows, columns)}
        for side, size in (("left", rows), ("right", columns)):
            if size <= group["longest"] and (side == "left" or group["sides"] == "both"):
                shapes |= {side: (n, size, size), f"{side}_basis": (n, size, size)}
        return shapes

    def new_state(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Bases begin as the identity, moments as zeros."""
        if not name.endswith("_basis"):
            return super().new_state(name, shape, dtype, device)
        return torch.eye(shape[-1], dtype=dtype, device=device).repeat(shape[0], 1, 1)

    def orthogonal(
        self, group: dict[str, Any], batch: Batch, numbers: list[int], grads: list[Tensor], momenta: list[Tensor], dtype: torch.dtype
    ) -> Tensor:
        """The orthogonal matrices of some tensors of one shape, (tensors, matrices, outputs, inputs)."""
        lie, steep = (group["matrices"], group["layout"]), []
        for i, grad, z in zip(numbers, grads, momenta, strict=True):
            g, z = (as_matrices(full_tensor_like(t, batch.wholes[i]), *lie) for t in (grad, z))
            steep.append(_preconditioned(batch.states[i], g, z, group).to(dtype))
        return orthogonalise(torch.stack(steep), steps=group["steps"])


def _preconditioned(state: dict[str, Tensor], g: Tensor, z: Tensor, group: dict[str, Any]) -> Tensor:
    """P of momenta z, with the moments of gradients g counted; both (matrices, outputs, inputs)."""
    beta = group["beta2"]
    for side, rows in (("left", g), ("right", g.mT)):
        if side in state:
            mean, basis = state[side].lerp_(rows @ rows.mT, 1 - beta), state[f"{side}_basis"]
            shift = SHIFT * mean.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
            basis.copy_(torch.linalg.qr(torch.baddbmm(shift * basis, mean, basis))[0])
    left, right = state.get("left_basis"), state.get("right_basis")
    state["second"].lerp_(_product(None if left is None else left.mT, g, right).square(), 1 - beta)
    state["step"].add_(1)
    size = (state["second"] / (1 - beta ** state["step"].to(g.dtype))).sqrt_()
    size.add_(size.mean((-2, -1), keepdim=True), alpha=group["damping"]).add_(group["eps"])
    steep = _product(None if left is None else left.mT, z, right) / size
    return _product(left, steep, None if right is None else right.mT)


def _product(left: Tensor | None, x: Tensor, right: Tensor | None) -> Tensor:
    """The product of all three, or of those that are not None."""
    x = x if left is None else left @ x
    return x if right is None else x @ right
