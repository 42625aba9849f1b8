import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigbatch import Recipe, UserError, build_optimizer, build_scheduler, plan
from bigbatch.scaling import RULES
from bigbatch.scaling.rules.weight_decay import total_shrinkage

MLP = Recipe.named("fashion_mnist/mlp")
RESNET = Recipe.named("fashion_mnist/resnet8")


def warnings(recipe, batch, rule):
    return "\n".join(plan(recipe, global_batch=batch, rule=rule).warnings)


@pytest.mark.parametrize("rule", [*RULES, "auto"])
@settings(max_examples=25, deadline=None)
@given(k=st.sampled_from([1, 2, 8, 64]), epochs=st.integers(1, 40))
def test_every_rule_keeps_the_samples_and_says_why(rule, k, epochs):
    reference = RESNET.replace({"budget.epochs": epochs})
    planned = plan(reference, global_batch=128 * k, rule=rule)
    assert planned.recipe.total_samples == reference.total_samples * (k if rule == "regime" else 1)
    assert planned.recipe.batch.global_batch == 128 * k
    if planned.recipe.optimizer.name == reference.optimizer.name:
        assert planned.recipe.optimizer.weight_decay == reference.optimizer.weight_decay  # SGD's
    assert planned.multiple == k
    for change in planned.changes:
        assert change.why
        assert reference.get(change.field) == change.before
        assert planned.recipe.get(change.field) == change.after


@pytest.mark.parametrize("batch", [1024, 50_000, 1000, 129, 7])
def test_a_budget_in_updates_keeps_its_samples(batch):
    """500 updates of 128 are 64,000 samples; at 50,000 they used to become 50,000, in silence."""
    reference = MLP.replace({"budget.epochs": None, "budget.updates": 500})
    planned = plan(reference, global_batch=batch, rule="linear")
    assert planned.recipe.total_samples == reference.total_samples == 64_000
    whole = 64_000 % batch == 0
    assert (planned.recipe.budget.updates is not None) == whole
    (change, *_) = [c for c in planned.changes if c.field.startswith("budget")]
    assert "the same 64,000 samples" in change.why


def test_at_the_references_own_batch_nothing_changes():
    for rule in (*RULES, "auto"):
        planned = plan(RESNET, global_batch=128, rule=rule)
        assert (planned.recipe, planned.changes) == (RESNET, ())


def test_overrides_are_set_after_the_rule_and_said():
    planned = plan(MLP, global_batch=1024, rule="legw", overrides={"schedule.warmup.epochs": 0.25, "optimizer.nesterov": False})
    assert planned.recipe.schedule.warmup.epochs == 0.25
    assert [(c.field, c.after) for c in planned.changes if c.why == "set by you"] == [
        ("schedule.warmup.epochs", 0.25),
        ("optimizer.nesterov", False),
    ]
    with pytest.raises(UserError, match=r"schedule.warmup.epoch"):
        plan(MLP, global_batch=1024, rule="legw", overrides={"schedule.warmup.epoch": 0.25})


def test_none_changes_the_batch_alone():
    assert [c.field for c in plan(RESNET, global_batch=1024, rule="none").changes] == ["batch.global_batch"]


def test_the_normalisation_group_is_kept():
    for rule in RULES:
        assert plan(RESNET, global_batch=8192, rule=rule).recipe.batch.ghost_batch == 128


@pytest.mark.parametrize(
    ("recipe", "batch", "rule", "message"),
    [
        (MLP, 8192, "sqrt", "only 68 updates"),
        (RESNET.replace({"batch.ghost_batch": "global"}), 1024, "none", "batch norm over the whole batch of 1,024"),
        (RESNET, 1000, "linear", "global_batch = 1000 is not a multiple of ghost_batch = 128"),
        (MLP.replace({"optimizer.name": "adam", "optimizer.lr": 1e-3}), 1024, "linear", "the linear rule was made for SGD, not for adam"),
        (MLP.replace({"schedule.decay.kind": "step", "schedule.decay.milestones": [3]}), 256, "linear", "first drops at epoch 3, inside"),
        (MLP, 64, "sqrt", "the batch shrinks"),
    ],
)
def test_warnings(recipe, batch, rule, message):
    assert message in warnings(recipe, batch, rule)


def test_an_unproblematic_plan_has_no_warnings():
    assert warnings(MLP, 512, "linear") == ""


def test_unknown_rule():
    with pytest.raises(UserError, match="unknown rule 'linaer': did you mean 'linear'\\? known: auto, local, none, linear, sqrt, legw"):
        plan(MLP, global_batch=256, rule="linaer")


@pytest.mark.parametrize("batch", [0, -128])
def test_a_batch_that_is_not_positive(batch):
    with pytest.raises(UserError, match=f"global_batch = {batch}: must be a finite number above zero"):
        plan(MLP, global_batch=batch)


def test_a_batch_larger_than_the_training_set():
    with pytest.raises(UserError, match=r"batch.global_batch = 65,536: is larger than the training set of 55,000 samples"):
        plan(MLP, global_batch=65_536)


def test_a_micro_batch_that_no_longer_fits_becomes_auto():
    planned = plan(RESNET.replace({"batch.micro_batch": 128}), global_batch=64, rule="none")
    assert (planned.recipe.batch.micro_batch, planned.recipe.batch.ghost_batch) == ("auto", 64)


def test_a_batch_above_the_noise_scale_is_warned_of_with_its_price():
    """B_noise = 128: at 512, S/S_min = 1 + 128/512 and E/E_min = 1 + 512/128; at the reference's 32 they are 5 and 1.25."""
    tuned = Recipe.named("digits/mlp")
    (warning, *_) = plan(tuned, global_batch=512, rule="linear", noise_scale=128.0).warnings
    assert "4 times the noise scale of 128 samples" in warning
    assert "expect 4 times the reference's samples for 4 times fewer updates" in warning
    assert "(S/S_min = 1.25, E/E_min = 5)" in warning
    assert all("noise scale" not in w for w in plan(tuned, global_batch=128, rule="linear", noise_scale=128.0).warnings)
    with pytest.raises(UserError, match="noise_scale = -1"):
        plan(tuned, global_batch=64, noise_scale=-1.0)


def test_adascale_sets_the_rate_itself():
    adascaled = Recipe.named("digits/mlp").replace({"batch.rule": {"kind": "adascale", "base_batch": 32}})
    assert plan(adascaled, global_batch=256, rule="none").recipe.optimizer.lr == adascaled.optimizer.lr
    for rule in ("auto", "linear"):
        with pytest.raises(UserError, match='both would raise the rate; use rule "none", or drop batch.rule'):
            plan(adascaled, global_batch=256, rule=rule)


SHORT = Recipe.named("digits/mlp").replace({"optimizer.weight_decay": 5e-4})


@pytest.mark.parametrize(
    "overrides",
    [
        {"optimizer.lr": 0.1},
        {"schedule.decay.kind": "constant"},
        {"budget.epochs": 40},
        {"batch.global_batch": 512},
        {"optimizer.name": "adamw", "optimizer.lr": 1e-3},
    ],
)
@pytest.mark.parametrize("rule", ["muon", "adamw"])
def test_the_decay_of_the_whole_run_is_kept_for_what_the_user_sets_too(overrides, rule):
    planned = plan(SHORT, global_batch=256, rule=rule, overrides=overrides)
    assert total_shrinkage(planned.recipe) == pytest.approx(total_shrinkage(SHORT), rel=1e-4)
    (why,) = [change.why for change in planned.changes if change.field == "optimizer.weight_decay"]
    assert why == "over the run the weights shrink by as much as in the reference"


def test_another_optimizer_of_the_user_s_has_its_decay_converted_under_any_rule():
    own = {"optimizer.name": "adamw", "optimizer.lr": 1e-3}
    planned = plan(SHORT, global_batch=256, rule="legw", overrides=own).recipe
    assert total_shrinkage(planned) == pytest.approx(total_shrinkage(SHORT), rel=1e-4)
    assert plan(SHORT, global_batch=256, rule="legw", overrides={**own, "optimizer.weight_decay": 0.3}).recipe.optimizer.weight_decay == 0.3
    lamb = plan(SHORT, global_batch=256, rule="legw", overrides={"optimizer.name": "lamb", "optimizer.lr": 1e-3})
    (told,) = [warning for warning in lamb.warnings if warning.kind == "weight decay"]
    assert f"{lamb.recipe.optimizer.weight_decay:g} is what was published for it" in told


@pytest.mark.parametrize(
    ("rule", "overrides"),
    [
        ("legw", {"schedule.warmup.samples": 1000}),
        ("muon", {"optimizer.name": "sgd", "optimizer.lr": 0.3}),
        ("legw", {"schedule.warmup": {"kind": "none"}}),
    ],
)
def test_each_change_that_is_told_is_in_the_plan(rule, overrides):
    planned = plan(SHORT, global_batch=256, rule=rule, overrides=overrides)
    for change in planned.changes:
        assert change.after == planned.recipe.get(change.field) or change.field == "schedule.warmup"


@pytest.mark.parametrize("rule", ["lars", "lamb", "adam", "adamw", "adamp"])
def test_what_the_user_says_of_parameters_stays_where_the_new_optimizer_splits_alike(rule):
    groups = {"1.weight": "norms_and_biases"}
    reference = SHORT.replace({"optimizer.decay_norms_and_biases": False, "optimizer.groups": groups})
    assert plan(reference, global_batch=128, rule=rule).recipe.optimizer.groups == groups


@pytest.mark.parametrize("rule", ["auto", "sde", "adamw", "muon", "soap_muon", "timescale"])
@pytest.mark.parametrize("decay", [0.1, 0.0])
def test_a_run_of_one_update_has_a_plan(rule, decay):
    """Its only update lies in the warm-up, at a factor of zero: sums over the schedule are zero."""
    short = {"optimizer.name": "adamw", "optimizer.lr": 1e-3, "optimizer.weight_decay": decay, "budget.epochs": 1}
    planned = plan(SHORT.replace(short), global_batch=1297, rule=rule)
    assert planned.recipe.num_updates == 1
    assert "few updates" in [warning.kind for warning in planned.warnings]


@pytest.mark.parametrize("overrides", [{"batch.rule.largest": 512}, {"batch.rule": None}])
@pytest.mark.parametrize("rule", ["legw", "muon"])
def test_batches_that_a_schedule_names_can_be_set_for_the_plan(overrides, rule):
    reference = SHORT.replace({"batch.rule": {"kind": "ramp", "largest": 128, "over_samples": 8000}})
    with pytest.raises(UserError, match="a batch of 128 is smaller than global_batch = 256"):
        plan(reference, global_batch=256, rule=rule)
    planned = plan(reference, global_batch=256, rule=rule, overrides=overrides).recipe
    assert planned.get("batch.rule.largest") == overrides.get("batch.rule.largest")


def test_arguments_of_another_kind_are_refused_in_a_line():
    planned = plan(SHORT, global_batch=64, rule="sqrt")
    assert plan(planned, global_batch=128, rule="sqrt").recipe == plan(planned.recipe, global_batch=128, rule="sqrt").recipe
    with pytest.raises(UserError, match="recipe = 'rec.toml': must be a Recipe or a plan; Recipe.load reads a file"):
        plan("rec.toml", global_batch=64)
    with pytest.raises(UserError, match="global_batch = '64': must be a finite number above zero"):
        plan(SHORT, global_batch="64")


def test_a_plan_builds_what_its_recipe_does():
    model = torch.nn.Linear(3, 2)
    planned = plan(SHORT, global_batch=64, rule="sqrt")
    optimizer = build_optimizer(model, planned)
    assert optimizer.defaults["lr"] == planned.recipe.optimizer.lr
    assert build_scheduler(optimizer, planned).global_batch == 64
    with pytest.raises(UserError, match="model = <generator .*>: must be the module itself"):
        build_optimizer(model.parameters(), planned)
    with pytest.raises(UserError, match="recipe = 3: must be a Recipe or a plan"):
        build_optimizer(model, 3)
