"""A recipe as language models are published with, and the sum that decay is about."""

from bigbatch import Recipe
from bigbatch.core.clock import Clock
from bigbatch.schedules.from_recipe import schedule_of

PUBLISHED = Recipe.from_toml(
    """
    num_train_samples = 10_000_000
    budget = { samples = 5_120_000 }
    batch = { global_batch = 512 }
    optimizer = { name = "adamw", lr = 3e-4, betas = [0.9, 0.95], weight_decay = 0.1 }
    schedule = { warmup = { kind = "gradual", updates = 200 }, decay = { kind = "cosine", final_factor = 0.1 } }
    """
)


def shrinkage(recipe):
    """sum of lr wd over the updates, written out update by update."""
    schedule, o, total = schedule_of(recipe), recipe.optimizer, 0.0
    for update in range(recipe.num_updates):
        rate = o.lr * schedule(Clock(update * recipe.batch.global_batch, update))
        total += rate * o.weight_decay / (1 - (o.momentum if o.name in ("sgd", "sgdp") else 0))
    return total
