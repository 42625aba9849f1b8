r"""Linear scaling: the rate grows with the batch, through a gradual warm-up.

Paper:   Goyal et al. 2017, Accurate, Large Minibatch SGD, arXiv:1706.02677, Sections 2.1, 2.2 and 5.1.
Formula: eta_k = k eta,   k = batch / reference batch;   warm-up over 5 epochs from eta to k eta, then the ordinary schedule.
         In the paper's own numbers: eta = 0.1 kn/256.
Keeps:   weight decay (Remark 1), momentum, epochs, samples per normalisation group.
Sets:    no decay on norms and biases, last gamma of each residual block zero (Section 5.1), where the recipe has the option.
Differs: with a decay that is already moving during the warm-up (cosine, linear) the two factors multiply, so that after it the
         ordinary schedule stands where it would have stood; with the paper's step decay nothing differs. For k < 1: no warm-up.
Limits:  ImageNet held to k = 32 (8,192); the rule needs k steps at eta to point the same way, which fails early in a run.
"""

from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe
from bigbatch.scaling.change import Change

PAPER = Paper(
    method="Linear scaling",
    title="Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour",
    authors="Goyal et al.",
    year=2017,
    arxiv="1706.02677",
    where="Sections 2.1 and 5.1",
    study="studies/scaling_rules",
)
WARMUP_EPOCHS = 5.0


def linear_lr(lr: float, k: float) -> float:
    """The rate for k times the batch.

    >>> linear_lr(0.1, 8192 / 256)
    3.2
    """
    return k * lr


def linear(recipe: Recipe, k: float) -> list[Change]:
    """What Goyal et al. change besides the batch."""
    lr = recipe.optimizer.lr
    changes = [Change("optimizer.lr", lr, linear_lr(lr, k), f"times k = {k:g}; weight decay and momentum stay (Remark 1)", PAPER)]
    if k > 1:
        before = recipe.schedule.warmup
        why = f"start at the base rate, 1/k of the peak, and add a constant each update for {WARMUP_EPOCHS:g} epochs"
        if recipe.schedule.decay.kind in ("polynomial", "cosine", "linear"):
            why += f"; the {recipe.schedule.decay.kind} decay goes on meanwhile"
        after = {"kind": "gradual", "epochs": WARMUP_EPOCHS, "start_factor": 1 / k}
        changes += [Change(f"schedule.warmup.{name}", getattr(before, name, None), value, why, PAPER) for name, value in after.items()]
    decays = recipe.get("optimizer.decay_norms_and_biases")
    if decays is not None:
        changes.append(Change("optimizer.decay_norms_and_biases", decays, False, "gains and biases are not decayed (Section 5.1)", PAPER))
    if "zero_init_last_gamma" in recipe.model:
        why = "each residual block starts as the identity, which eases the start at a high rate (Section 5.1)"
        changes.append(Change("model.zero_init_last_gamma", recipe.model["zero_init_last_gamma"], True, why, PAPER))
    if recipe.batch.ghost_batch == "global":
        why = "keep the samples per normalisation group of the reference: they are part of the loss (Section 2.3)"
        changes.append(Change("batch.ghost_batch", "global", recipe.batch.global_batch, why, PAPER))
    return changes
