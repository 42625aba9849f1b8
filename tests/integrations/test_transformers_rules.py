"""A rule sets the Trainer's accumulation between updates; misuse is refused with the remedy; arguments follow from recipes."""

import math

import pytest
import torch
from tests.integrations.models import gpt2, resnet, tokens
from tests.integrations.trainer_run import facts, recipe_of, trainer_of
from transformers import TrainerCallback

from bigbatch import Clock, Recipe, UserError, plan
from bigbatch.core.checks import RecipeError
from bigbatch.integrations.transformers import BigBatchCallback, build, training_arguments
from bigbatch.schedules.from_recipe import decay_of, schedule_of, warmup_of

NUM_SAMPLES = 280
NOISE_SCALE = {
    "num_train_samples": NUM_SAMPLES,
    "optimizer.lr": 1e-3,
    "batch.global_batch": 8,
    "batch.micro_batch": 4,
    "batch.rule": {"kind": "noise_scale", "smallest": 8, "largest": 64, "multiple_of": 4, "every_updates": 3, "lr": "sqrt"},
    "budget.epochs": 2,
}
INCREASE = {
    "num_train_samples": NUM_SAMPLES,
    "batch.global_batch": 8,
    "batch.micro_batch": 4,
    "batch.rule": {"kind": "increase_batch", "largest": 64},
    "schedule.decay": {"kind": "cosine", "final_factor": 0.05},
    "budget.epochs": 2,
}


SCHEDULES = {
    "schedule": {"kind": "schedule", "steps": [[40, 16], [120, 32]]},
    "ramp": {"kind": "ramp", "over_samples": 160, "largest": 48},
    "late": {"kind": "late", "after": 0.4, "largest": 32, "lr": "linear"},
    "seesaw": {"kind": "seesaw", "largest": 64},
}
KNOWN = {kind: {**INCREASE, "batch.rule": rule} for kind, rule in SCHEDULES.items()}


@pytest.fixture(autouse=True)
def _no_accelerator_left():
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Watched:
    """Which samples each update had, seen from below the callback."""

    def __init__(self, trainer):
        self.updates, self.rates, self._now = [], [], []
        inner = trainer.training_step

        def step(model, inputs, num_items_in_batch=None):
            self._now += inputs["input_ids"].tolist()
            return inner(model, inputs, num_items_in_batch)

        trainer.training_step = step
        trainer.optimizer.register_step_pre_hook(self._after)

    def _after(self, optimizer, *_):
        self.updates.append(self._now)
        self.rates.append(optimizer.param_groups[0]["lr"])
        self._now = []


def ruled(folder, changes, **settings):
    settings = {"train_sampling_strategy": "random", **settings}
    trainer, callback = trainer_of("gpt2", folder, recipe=recipe_of(changes), data=tokens(NUM_SAMPLES), **settings)
    return trainer, callback, Watched(trainer)


@pytest.mark.parametrize("changes", [NOISE_SCALE, INCREASE, *KNOWN.values()], ids=["noise_scale", "increase_batch", *KNOWN])
def test_a_rule_sets_the_batch_and_no_sample_is_lost_or_doubled(changes, tmp_path):
    trainer, _callback, watched = ruled(tmp_path, changes)
    trainer.train()
    sizes = [len(update) for update in watched.updates]
    assert sizes[0] == 8
    assert max(sizes) >= 32
    assert sum(sizes) == 2 * NUM_SAMPLES
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    assert NUM_SAMPLES in ends
    for epoch in (watched.updates[: ends.index(NUM_SAMPLES) + 1], watched.updates[ends.index(NUM_SAMPLES) + 1 :]):
        seen = [tuple(row) for update in epoch for row in update]
        assert sorted(seen) == sorted(map(tuple, trainer.train_dataset.columns["input_ids"].tolist()))
    assert trainer.lr_scheduler.clock == Clock(2 * NUM_SAMPLES, len(sizes))
    assert trainer.args.gradient_accumulation_steps == 2  # as it was given
    logs = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
    assert [entry["learning_rate"] for entry in logs] == watched.rates


def test_the_rate_goes_with_the_batch(tmp_path):
    trainer, _, watched = ruled(tmp_path, NOISE_SCALE)
    trainer.train()
    recipe, clock, full = recipe_of(NOISE_SCALE), Clock(), 8
    for update, rate in zip(watched.updates, watched.rates, strict=True):
        ends_epoch = (clock.samples + len(update)) % NUM_SAMPLES == 0
        full = full if ends_epoch else len(update)  # the last of an epoch may be short of what the rule set
        expected = recipe.optimizer.lr * schedule_of(recipe)(clock)
        if not ends_epoch:
            assert math.isclose(rate, expected * math.sqrt(full / 8), rel_tol=1e-12, abs_tol=1e-15)
        clock = clock.after(len(update))


@pytest.mark.parametrize("changes", [NOISE_SCALE, INCREASE, KNOWN["ramp"]], ids=["noise_scale", "increase_batch", "ramp"])
@pytest.mark.parametrize("later", [0, 4])
def test_a_rule_is_resumed_in_the_middle(changes, later, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1}
    trainer, callback, watched = ruled(tmp_path, changes, **saving)
    trainer.train()
    whole, sizes, rates = facts(trainer, callback), [len(u) for u in watched.updates], watched.rates
    at = next(i for i, size in enumerate(sizes) if size > 8) + 1 + later
    assert sizes[0] < sizes[at - later - 1]
    trainer, callback, watched = ruled(tmp_path, changes)
    trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
    assert [len(u) for u in watched.updates] == sizes[at:]
    assert watched.rates == rates[at:]
    resumed = facts(trainer, callback)
    assert resumed["weights"] == whole["weights"]
    assert repr(resumed["measured"]) == repr(whole["measured"])


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"kind": "adascale", "base_batch": 8}, "a clock of its own"),
        ({"kind": "absa"}, "looks at the curvature"),
        ({"kind": "noise_scale", "norm": "l1"}, "BigBatchCallback measures the plain noise scale"),
        ({"kind": "inner_product_test"}, "keeps the last gradient"),
    ],
)
def test_rules_that_a_trainer_cannot_follow_are_refused(rule, why):
    recipe = recipe_of({**NOISE_SCALE, "batch.rule": rule})
    with pytest.raises(RecipeError, match=f'batch.rule.kind = "{rule["kind"]}" in a Trainer: .*{why}'):
        build(gpt2(), recipe)


def test_a_rule_whose_batches_are_no_whole_passes_is_refused(tmp_path):
    changes = {**INCREASE, "batch.micro_batch": "auto", "batch.global_batch": 12}
    trainer, _, _ = ruled(tmp_path, {**changes})
    trainer.args.per_device_train_batch_size = trainer._train_batch_size = 8
    with pytest.raises(UserError, match=r"are not whole passes of 8 samples.*; set recipe.replace\(\{\"batch.micro_batch\""):
        trainer.train()


@pytest.mark.parametrize("kind", ["schedule", "ramp", "late"])
def test_a_listed_batch_that_is_no_whole_passes_is_refused(kind, tmp_path):
    rule = {**SCHEDULES[kind], **({"steps": [[40, 16], [120, 30]]} if kind == "schedule" else {"largest": 30})}
    trainer, _, _ = ruled(tmp_path, {**INCREASE, "batch.rule": rule})
    with pytest.raises(UserError, match=f'batch.rule.kind = "{kind}": a batch of 30 is not whole passes of 4 samples .* multiple of 4'):
        trainer.train()


@pytest.mark.parametrize("kind", KNOWN)
def test_the_rate_of_a_known_batch_is_the_formulas(kind, tmp_path):
    """At every update, whatever batch the Trainer could make."""
    trainer, _, watched = ruled(tmp_path, KNOWN[kind])
    trainer.train()
    recipe, seen = recipe_of(KNOWN[kind]), 0
    for update, rate in zip(watched.updates, watched.rates, strict=True):
        warmup, decay = warmup_of(recipe)(Clock(seen)), decay_of(recipe)(Clock(seen))
        match kind:
            case "schedule":
                batch = 8 if seen < 40 else 16 if seen < 120 else 32
            case "ramp":
                batch = 48 if seen >= 160 else 4 * math.floor((8 + 40 * seen / 160) / 4 + 0.5)
            case "late":
                batch = 8 if seen < 0.4 * 2 * NUM_SAMPLES else 32
            case "seesaw":
                batch = min(64, 4 * math.floor(8 / decay / 4 + 0.5))
        k = batch / 8
        assert math.isclose(rate, recipe.optimizer.lr * warmup * decay * (k if kind == "late" else math.sqrt(k)), rel_tol=1e-12), seen
        seen += len(update)
    assert seen == 2 * NUM_SAMPLES


def test_a_batch_that_is_not_the_recipes_is_refused(tmp_path):
    trainer, _ = trainer_of("gpt2", tmp_path)
    trainer.lr_scheduler.global_batch = 32
    with pytest.raises(UserError, match=r"global_batch = 32: the Trainer makes updates of 16 samples \(4 x 1 processes x 4 passes\)"):
        trainer.train()


def test_a_model_whose_loss_ignores_the_number_of_items_is_refused(tmp_path):
    model = resnet()
    del model.accepts_loss_kwargs
    trainer, _ = trainer_of("resnet", tmp_path, model=model)
    with pytest.raises(
        UserError, match="ResNetForImageClassification: takes num_items_in_batch.*by the number of passes.*; set model.accepts"
    ):
        trainer.train()


def test_a_wrong_count_of_items_is_named_and_the_noise_scale_is_right_all_the_same(tmp_path):
    """The Trainer's gradients are too small by a factor then, for all passes alike, so that the first update's noise scale stays."""
    scales = []
    for loss_type in ("ForCausalLM", None):
        model = gpt2()
        model.loss_type = loss_type
        trainer, callback = trainer_of("gpt2", tmp_path, model=model, max_steps=1)
        if loss_type is None:
            with pytest.warns(UserWarning, match="GPT2LMHeadModel: the Trainer counts the first token.*set model.loss_type"):
                trainer.train()
        else:
            trainer.train()
        scales.append(callback.monitor.estimate().noise_scale)
    assert scales[1] == pytest.approx(scales[0], rel=1e-5)  # the loss is in float32, whatever the model is in


def test_evaluations_between_change_nothing(tmp_path):
    found = []
    for evaluates in (False, True):
        trainer, callback = trainer_of("gpt2", tmp_path)
        if evaluates:
            trainer.eval_dataset, trainer.args.eval_on_start, trainer.args.eval_strategy = trainer.train_dataset, True, "epoch"
            trainer.args.save_strategy, trainer.args.metric_for_best_model = "best", "loss"
        trainer.train()
        found.append(facts(trainer, callback))
    assert found[0]["weights"] == found[1]["weights"]
    assert repr(found[0]["measured"]) == repr(found[1]["measured"])
    assert list(tmp_path.glob("checkpoint-*/trainer_state.json"))


def test_without_our_scheduler_there_is_only_the_noise(tmp_path):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(tmp_path), max_steps=4, use_cpu=True, report_to="none", logging_steps=1, save_strategy="no", gradient_accumulation_steps=2,
        per_device_train_batch_size=4, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(gpt2(torch.float32), arguments, train_dataset=tokens())
    trainer.add_callback(BigBatchCallback(trainer, last=2))
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
    assert any("noise_scale" in entry for entry in logs)
    assert not any("global_batch" in entry for entry in logs)


def test_arguments_of_a_recipe_and_what_they_leave_out():
    recipe = Recipe.named("fashion_mnist/resnet8")
    keywords, left_out = training_arguments(plan(recipe, global_batch=1024, rule="linear"), num_processes=2)
    assert keywords["per_device_train_batch_size"] * keywords["gradient_accumulation_steps"] * 2 == 1024
    assert keywords["learning_rate"] == plan(recipe, global_batch=1024, rule="linear").recipe.optimizer.lr
    assert any("ghost_batch" in line for line in left_out)
    keywords, left_out = training_arguments(Recipe.named("text/gpt-muon"))
    assert "optim" not in keywords
    assert any('optimizer.name = "muon"' in line and "build(model, recipe)" in line for line in left_out)
    with pytest.raises(UserError, match="a batch of 16 over 3 processes: is no whole number of passes of 4"):
        training_arguments(recipe_of(), num_processes=3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule.decay": {"kind": "linear"}},
        {"schedule.decay": {"kind": "cosine", "final_factor": 0.1}},
        {"schedule.decay": {"kind": "polynomial", "power": 2.0, "final_factor": 0.1}},
        {"schedule.decay": {"kind": "constant"}},
        {"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True}},
    ],
)
def test_arguments_alone_give_the_same_rates_where_nothing_is_left_out(changes, tmp_path):
    """Of a recipe whose warm-up and epochs are whole updates."""
    from transformers import Trainer, TrainingArguments

    recipe = recipe_of({"num_train_samples": 48, "schedule.warmup": {"kind": "gradual", "samples": 32}, **changes})
    keywords, left_out = training_arguments(recipe)
    assert left_out == []
    plain = {"use_cpu": True, "report_to": "none", "logging_steps": 1, "disable_tqdm": True, "save_strategy": "no"}
    trainer = Trainer(gpt2(), TrainingArguments(str(tmp_path), **keywords, **plain), train_dataset=tokens(48))
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    schedule = schedule_of(recipe)
    assert rates == pytest.approx([recipe.optimizer.lr * schedule(Clock(16 * i, i)) for i in range(9)], rel=1e-12)
    assert type(trainer.optimizer.optimizer).__name__ == type(build(gpt2(), recipe)[0]).__name__
    for name in ("betas", "eps", "momentum", "nesterov"):
        group = build(gpt2(), recipe)[0].param_groups[0]
        if name in group:
            assert trainer.optimizer.param_groups[0][name] == group[name]


def test_a_trainer_that_was_interrupted_trains_on_to_the_end(tmp_path):
    """As in a notebook: the Trainer computes the length of a resumed run from its arguments, which the rule has changed."""
    saving = {"save_strategy": "steps", "save_steps": 1}
    trainer, _, watched = ruled(tmp_path, INCREASE, **saving)
    trainer.train()
    sizes = [len(update) for update in watched.updates]
    at = next(i for i, size in enumerate(sizes) if size > 8) + 2

    class Interrupts(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == at + 1 and not trainer_is_resumed:
                raise KeyboardInterrupt

    trainer_is_resumed = []
    trainer, _, watched = ruled(tmp_path / "again", INCREASE, **saving)
    trainer.add_callback(Interrupts())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.args.gradient_accumulation_steps == 2  # as it was given
    hooked = sum(len(p._backward_hooks or ()) + len(p._post_accumulate_grad_hooks or ()) for p in trainer.model.parameters())
    assert hooked == 0
    trainer_is_resumed.append(True)
    watched.updates.clear()
    trainer.train(resume_from_checkpoint=str(tmp_path / "again" / f"checkpoint-{at}"))
    assert [len(update) for update in watched.updates] == sizes[at:]
    assert trainer.lr_scheduler.clock == Clock(2 * NUM_SAMPLES, len(sizes))
