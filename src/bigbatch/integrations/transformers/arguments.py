"""The `TrainingArguments` that a plan implies, and what they have no word for."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.environment import read_variable
from bigbatch.recipe import Recipe
from bigbatch.scaling.plan import Plan

GROUPS = 4
"""Passes of an update over all processes, where it may be cut as one likes: two would do for the noise scale, four tell more."""
SEED_LIMIT = 2**32
"""The Trainer seeds numpy, which takes no more."""


class Arguments(NamedTuple):
    """What `training_arguments` returns."""

    keywords: dict[str, Any]  # for TrainingArguments
    left_out: list[str]  # a line each: what they can't say, and who can


def training_arguments(recipe: Recipe | Plan, *, num_processes: int | None = None, micro_batch: int | None = None) -> Arguments:
    """The keyword arguments of `TrainingArguments` that a recipe, or a plan's, implies.

    Rate, schedule and optimizer are among them, for a Trainer without `optimizers=build(model, recipe)`. With it these are not used, and
    follow the recipe exactly.

    Args:
        recipe: Or the plan that made it.
        num_processes: That train together; torchrun's WORLD_SIZE, or 1, if left out.
        micro_batch: Samples of one forward pass of one process; if left out, the recipe's, or as gives four passes or more over all
            processes.

    Returns:
        The keyword arguments, and what they leave out.

    Raises:
        UserError: If the batch is not a whole number of passes.

    >>> keywords, left_out = training_arguments(Recipe.named("text/gpt"), micro_batch=4)
    >>> [keywords[name] for name in ("gradient_accumulation_steps", "lr_scheduler_type", "adam_beta2", "max_grad_norm")]
    [4, 'cosine', 0.99, 1.0]
    >>> left_out[0]
    'schedule.warmup: 96.775 updates of warm-up, rounded to 97; build(model, recipe) counts samples'
    """
    recipe = recipe.recipe if isinstance(recipe, Plan) else recipe
    num_processes = num_processes or read_variable("WORLD_SIZE", 1)
    micro = micro_batch or _micro_batch(recipe, num_processes)
    check_positive("micro_batch", micro)
    smallest = getattr(recipe.batch.rule, "smallest", None) or recipe.batch.global_batch
    least = min(smallest, recipe.batch.global_batch)
    if least % (micro * num_processes):
        raise UserError(
            f"a batch of {least} over {num_processes} processes: is no whole number of passes of {micro} samples; change micro_batch"
        )
    budget = recipe.budget
    keywords: dict[str, Any] = {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": least // (micro * num_processes),
        "learning_rate": recipe.optimizer.lr,
        "max_grad_norm": recipe.optimizer.clip_norm or 0.0,  # 0: not clipped
        "seed": recipe.seed % SEED_LIMIT,
        "data_seed": recipe.seed % SEED_LIMIT,
        "average_tokens_across_devices": True,
        "bf16": recipe.precision == "bfloat16",
    }
    if budget.epochs is not None or recipe.batch.rule is not None:
        keywords["num_train_epochs"] = recipe.total_epochs
    else:
        keywords["max_steps"] = recipe.num_updates
    schedule, left_out = _schedule(recipe)
    optimizer, left_out_too = _optimizer(recipe)
    return Arguments({**keywords, **schedule, **optimizer}, [*left_out, *left_out_too, *_others(recipe)])


def _micro_batch(recipe: Recipe, num_processes: int) -> int:
    batch = recipe.batch
    if isinstance(batch.micro_batch, int):
        return min(batch.micro_batch, max(1, batch.global_batch // num_processes))
    least = min(getattr(batch.rule, "smallest", None) or batch.global_batch, batch.global_batch)
    if least % num_processes:
        raise UserError(f"a batch of {least} over {num_processes} processes: is not a whole number for each; choose a multiple")
    local = least // num_processes
    passes = range(min(local, -(-GROUPS // num_processes)), local + 1)
    return next(local // number for number in passes if local % number == 0)


def _schedule(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    """Arguments of the schedule, which counts updates."""
    schedule, left_out = recipe.schedule, []
    updates = recipe.warmup_samples / recipe.batch.global_batch
    rounded = round(updates) if abs(updates - round(updates)) < 1e-9 else int(updates) + 1
    keywords: dict[str, Any] = {"warmup_steps": rounded}
    if rounded != updates:
        left_out.append(f"schedule.warmup: {updates:g} updates of warm-up, rounded to {rounded}; build(model, recipe) counts samples")
    if schedule.warmup.kind not in ("none", "gradual") or recipe.get("schedule.warmup.start_factor"):
        left_out.append(f'schedule.warmup: "{schedule.warmup.kind}" is no line from zero; build(model, recipe) has it')
    if schedule.combine == "product" and rounded and schedule.decay.kind != "constant":
        left_out.append('schedule.combine = "product": the Trainer decays after the warm-up; build(model, recipe) has it')
    kind, final = schedule.decay.kind, getattr(schedule.decay, "final_factor", 0.0)
    match kind:
        case "constant":
            keywords["lr_scheduler_type"] = "constant_with_warmup" if rounded else "constant"
        case "linear" if not final:
            keywords["lr_scheduler_type"] = "linear"
        case "cosine" if not final:
            keywords["lr_scheduler_type"] = "cosine"
        case "cosine":
            keywords |= {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": final}}
        case "linear" | "polynomial":
            power = getattr(schedule.decay, "power", 1.0)
            keywords |= {
                "lr_scheduler_type": "polynomial",
                "lr_scheduler_kwargs": {"power": power, "lr_end": final * recipe.optimizer.lr},
            }
        case _:
            keywords["lr_scheduler_type"] = "constant_with_warmup" if rounded else "constant"
            left_out.append(f'schedule.decay: "{kind}" is none of the Trainer\'s; build(model, recipe) has it')
    return keywords, left_out


def _optimizer(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    """Arguments of the optimizer."""
    o, left_out = recipe.optimizer, []
    match o.name:
        case "adamw":
            first, second = getattr(o, "betas", (0.9, 0.999))
            keywords = {"optim": "adamw_torch", "adam_beta1": first, "adam_beta2": second, "adam_epsilon": getattr(o, "eps", 1e-8)}
        case "sgd":
            momentum = f"momentum={getattr(o, 'momentum', 0.0)!r},nesterov={getattr(o, 'nesterov', False)}"
            keywords = {"optim": "sgd", "optim_args": momentum}
        case _:
            keywords = {}
            left_out.append(f'optimizer.name = "{o.name}": is none of the Trainer\'s; build(model, recipe) has it')
    keywords["weight_decay"] = o.weight_decay
    if o.weight_decay and getattr(o, "decay_norms_and_biases", False):
        left_out.append("optimizer.decay_norms_and_biases: the Trainer leaves them out; build(model, recipe) has it")
    if o.groups:
        left_out.append("optimizer.groups: the Trainer groups by its own names; build(model, recipe) has them")
    return keywords, left_out


def _others(recipe: Recipe) -> Iterator[str]:
    """What is neither the rate nor the optimizer."""
    batch = recipe.batch
    if batch.rule is not None:
        yield f'batch.rule.kind = "{batch.rule.kind}": BigBatchCallback follows it, with build(model, recipe)'
    if batch.ghost_batch is not None:
        yield f"batch.ghost_batch = {batch.ghost_batch!r}: call bigbatch.layers.convert_batch_norm(model, ghost_batch=...) before build"
    if batch.noise_batch is not None:
        yield f"batch.noise_batch = {batch.noise_batch}: weigh the losses yourself, by bigbatch.noise.noise_factors"
    if recipe.seed >= SEED_LIMIT:
        yield f"seed = {recipe.seed}: larger than the Trainer takes; {recipe.seed % SEED_LIMIT} is given"
    if recipe.precision == "float64":
        yield 'precision = "float64": call model.double()'
    if recipe.comm.kind != "all_reduce" or getattr(recipe.comm, "compression", None) is not None:
        yield f'comm.kind = "{recipe.comm.kind}": the Trainer averages gradients by DistributedDataParallel, or FSDP by its `fsdp`'
    for name in ("adversarial", "augmentation", "curvature"):
        if getattr(recipe, name) is not None:
            yield f"[{name}]: is not the Trainer's; bigbatch.fit has it"
    if recipe.model:
        yield f"[model] {', '.join(recipe.model)}: build the model so"
