"""An idea from a forum: take the gradients of several subsets of the batch, and step on those that differ most from the whole one's.

Nearest published: Grad Queue (2024, arXiv:2404.16917), which weighs what is rare in a stream of gradients up.
Rule:   g_1 ... g_s are the mean gradients of s equal parts of the update's samples, g their mean; the step is made of

    mean                g
    random              the mean of `kept` of them, drawn anew each time
    most_different      the mean of the `kept` of lowest cosine with g
    least_different     ... of highest
    most_distant        ... of largest |g_i - g|
    weighted            the mean weighted by |g_i - g|
    noise               g and Gaussian noise, of each weight, with the variance that the mean of `kept` random ones has around g

The parts are micro-batches, which exist anyway. Whatever optimizer follows sees this in place of the gradient.
"""

import math
from typing import Literal

import torch

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.optim.from_torch.sgd import SGDSection
from bigbatch.optim.muon.muon_section import MuonSection

RULES = ("mean", "random", "most_different", "least_different", "most_distant", "weighted", "noise")
SEEN: list[dict[str, float]] = []
"""Of each update of the run in this process: what the parts were like."""


class SubsetSGD(SGDSection):
    """torch.optim.SGD behind a rule above."""

    name: Literal["subset_sgd"] = "subset_sgd"
    rule: str = "mean"
    kept: int = 4


class SubsetMuon(MuonSection):
    """bigbatch.optim.Muon behind a rule above."""

    name: Literal["subset_muon"] = "subset_muon"
    rule: str = "mean"
    kept: int = 4


@OPTIMIZERS.register("subset_sgd", SubsetSGD)
def build_sgd(section, model, group):
    """For a recipe whose micro-batches are the parts."""
    return watched(OPTIMIZERS["sgd"].build(section, model, group), section)


@OPTIMIZERS.register("subset_muon", SubsetMuon)
def build_muon(section, model, group):
    """For a recipe whose micro-batches are the parts."""
    return watched(OPTIMIZERS["muon"].build(section, model, group), section)


def watched(optimizer, section):
    """The optimizer, each of its steps with the gradient that the rule makes."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    parts = {p: [] for p in params}
    chance = torch.Generator().manual_seed(torch.initial_seed() % 2**63)

    @torch.no_grad()
    def seen(p):
        parts[p].append(p.grad.float() - sum(parts[p]) if parts[p] else p.grad.float().clone())

    @torch.no_grad()
    def before(*_):
        rows = torch.stack([torch.cat([parts[p][i].flatten() for p in params]) for i in range(len(parts[params[0]]))])
        g = combine(rows * len(rows), section.rule, section.kept, chance)
        for p, part in zip(params, torch.split(g, [p.numel() for p in params]), strict=True):
            p.grad.copy_(part.view_as(p))
            parts[p].clear()

    for p in params:
        p.register_post_accumulate_grad_hook(seen)
    optimizer.register_step_pre_hook(before)
    return optimizer


def combine(rows, rule, kept, chance):
    """The gradient of a step from those of the parts.

    Args:
        rows: Shape (parts, weights).
        rule: See above.
        kept: Parts that count.
        chance: For what is random.
    """
    g = rows.mean(0)
    distance = torch.linalg.vector_norm(rows - g, dim=1)
    cosine = torch.nn.functional.cosine_similarity(rows, g[None], dim=1)
    spread = float(distance.square().sum() / (len(rows) - 1))  # trace of the covariance of a part's gradient
    SEEN.append({"noise": spread / len(rows), "signal": float(g @ g), "cosine": float(cosine.mean()), "least": float(cosine.min())})
    if rule == "mean":
        return g
    if rule == "weighted":
        return distance @ rows / distance.sum()
    if rule == "noise":
        share = max(0.0, 1 / kept - 1 / len(rows))  # the last update may have fewer parts
        return g + math.sqrt(share) * rows.std(0) * torch.randn(g.shape, generator=chance)
    order = {
        "random": lambda: torch.randperm(len(rows), generator=chance),
        "most_different": lambda: cosine.argsort(),
        "least_different": lambda: cosine.argsort(descending=True),
        "most_distant": lambda: distance.argsort(descending=True),
    }[rule]()
    return rows[order[:kept]].mean(0)
