"""Rules with one thing different: what the rules for references with AdamW were chosen among, on text/gpt alone, and what tells two apart.

On text/lstm, which no rule was adjusted on, "adamw, warm-up in samples" and "adamw, betas by sde" stand between `adamw` and `sde`.
"""

from bigbatch.scaling.rules.sde import beta_at
from bigbatch.scaling.rules.weight_decay import decay_for_shrinkage, total_shrinkage

VARIANTS = (
    "adamw, warm-up in samples",
    "adamw, warm-up of a quarter",
    "adamw, warm-up of a tenth",
    "adamw, beta2^k",
    "adamw, betas kept",
    "muon, warm-up in samples",
    "muon, momentum 0.85",
    "muon, twice the rates",
    "muon, rates by updates",
)
"""Of text/gpt at 16 and 64 times the batch; those of text/lstm are named above."""


def changed_by(method, reference, planned):
    """Fields that a variant sets in what its rule has planned; none, if it is a rule's name."""
    o, k, n = reference.optimizer, planned.batch.global_batch / reference.batch.global_batch, planned.num_updates
    match method.partition(", ")[2]:
        case "":
            return {}
        case "warm-up in samples":
            return {"schedule.warmup.epochs": reference.schedule.warmup.epochs}
        case "warm-up of a quarter" | "warm-up of a tenth" as part:
            share = 0.25 if part.endswith("quarter") else 0.1
            warmup = {"schedule.warmup.epochs": min(share * planned.total_epochs, planned.schedule.warmup.epochs)}
            return warmup | {"optimizer.weight_decay": decay_for_shrinkage(planned.replace(warmup), total_shrinkage(reference))}
        case "beta2^k":
            return {"optimizer.betas": (o.betas[0], o.betas[1] ** k)}
        case "betas by sde":
            return {"optimizer.betas": tuple(beta_at(beta, k) for beta in o.betas)}
        case "beta2 by sde":
            return {"optimizer.betas": (o.betas[0], beta_at(o.betas[1], k))}
        case "betas kept":
            return {"optimizer.betas": o.betas}
        case "momentum 0.85":
            return {"optimizer.momentum": 0.85}
        case "twice the rates":
            return {"optimizer.lr": 2 * planned.optimizer.lr, "optimizer.adam_lr": 2 * planned.optimizer.adam_lr}
        case "rates by updates":  # as from an SGD reference
            rates = {"optimizer.lr": 0.4 / n**0.5, "optimizer.adam_lr": 0.15 / n**0.5, "optimizer.momentum": 0.85}
            two_updates = 2 * planned.batch.global_batch / planned.num_train_samples
            return rates | {"schedule.warmup.epochs": two_updates, "schedule.decay": {"kind": "linear"}}
    raise ValueError(method)
