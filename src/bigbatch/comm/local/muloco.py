r"""MuLoCo: DiLoCo with Muon inside.

Paper:   Therien, Huang, Defazio, Rish, Belilovsky 2025, MuLoCo: Muon is a Practical Inner Optimizer for DiLoCo, arXiv:2505.23725.
Formula: DiLoCo's, the inner optimizer being Muon: a worker's displacement is a sum of orthogonalised steps, so that it points more the same
         way on all workers, and keeps its quality when it is averaged over many.
Units:   H (period) in updates.
Differs: defaults are those of the paper's second version: H = 30, outer rate 0.7, outer momentum 0.6. Muon is this project's.
"""

from typing import Any

from torch import nn

from bigbatch.comm.local.diloco import DiLoCo
from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks
from bigbatch.core.paper import Paper

PAPER = Paper(
    method="MuLoCo",
    title="MuLoCo: Muon is a Practical Inner Optimizer for DiLoCo",
    authors="Therien, Huang, Defazio, Rish, Belilovsky",
    year=2025,
    arxiv="2505.23725",
    where="Section 3",
    study="studies/local",
)


class MuLoCo(DiLoCo):
    """See the module's docstring for the rule. Its inner optimizer is `bigbatch.optim.Muon`, or another Muon.

    Args:
        model: The model.
        ranks: The workers; one alone has an outer optimizer too.
        outer_momentum: mu.
        settings: Those of `DiLoCo`.
    """

    def __init__(self, model: nn.Module, ranks: Ranks = SINGLE_PROCESS, *, outer_momentum: float = 0.6, **settings: Any) -> None:
        super().__init__(model, ranks, outer_momentum=outer_momentum, **settings)
