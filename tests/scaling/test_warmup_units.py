"""A warm-up in samples or updates is planned as the same one in epochs, and keeps its unit where it can."""

import pytest

from bigbatch import Clock, Recipe, plan
from bigbatch.core.checks import RecipeError
from bigbatch.scaling import RULES
from bigbatch.schedules.from_recipe import schedule_of

BASE = Recipe.named("fashion_mnist/resnet8").replace({"num_train_samples": 51_200, "batch.global_batch": 128, "budget.epochs": 20})
IN = {  # two epochs of 51,200 samples, in updates of 128
    "epochs": BASE.replace({"schedule.warmup": {"kind": "gradual", "epochs": 2.0}}),
    "samples": BASE.replace({"schedule.warmup": {"kind": "gradual", "samples": 102_400}}),
    "updates": BASE.replace({"schedule.warmup": {"kind": "gradual", "updates": 800}}),
}


def test_hand_worked():
    assert {name: (recipe.warmup_samples, recipe.warmup_epochs) for name, recipe in IN.items()} == dict.fromkeys(IN, (102_400.0, 2.0))
    for recipe in IN.values():
        factor = schedule_of(recipe.replace({"schedule.decay": {"kind": "constant"}}))
        assert [factor(Clock(samples)) for samples in (0, 51_200, 102_400)] == [0.0, 0.5, 1.0]
        assert Recipe.from_toml(recipe.to_toml()) == recipe


@pytest.mark.parametrize("k", [0.5, 2, 16, 100])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("unit", ["samples", "updates"])
def test_every_rule_plans_the_same_warm_up(rule, unit, k):
    batch = round(128 * k)
    planned, expected = (plan(IN[name], global_batch=batch, rule=rule) for name in (unit, "epochs"))
    assert planned.recipe.warmup_samples == pytest.approx(expected.recipe.warmup_samples, abs=0.5)
    warmup = planned.recipe.to_dict()["schedule"]["warmup"]
    whole = round(expected.recipe.warmup_samples) % batch == 0
    assert {"epochs", "samples", "updates"} & warmup.keys() == {unit if unit == "samples" or whole else "samples"}
    for change in planned.changes:
        assert change.why
        assert IN[unit].get(change.field) == change.before
        assert planned.recipe.get(change.field) == change.after
    others = [
        {field: value for field, value in each.recipe.to_flat_dict().items() if not field.startswith("schedule.warmup.")}
        for each in (planned, expected)
    ]
    assert others[0] == others[1]
    assert [warning.kind for warning in planned.warnings] == [warning.kind for warning in expected.warnings]


def test_legw_keeps_updates_and_others_keep_samples():
    assert plan(IN["updates"], global_batch=1024, rule="legw").recipe.schedule.warmup.updates == 800
    assert plan(IN["updates"], global_batch=1024, rule="sqrt").recipe.schedule.warmup.updates == 100
    assert plan(IN["samples"], global_batch=1024, rule="sqrt").recipe.schedule.warmup.samples == 102_400
    assert plan(IN["updates"], global_batch=1000, rule="none").recipe.schedule.warmup.samples == 102_400


@pytest.mark.parametrize("rule", [*RULES, "auto"])
@pytest.mark.parametrize("unit", IN)
def test_at_the_references_own_batch_nothing_changes(rule, unit):
    planned = plan(IN[unit], global_batch=128, rule=rule)
    assert (planned.recipe, planned.changes) == (IN[unit], ())


@pytest.mark.parametrize("unit", IN)
def test_setting_another_unit_drops_the_first(unit):
    for other, value in (("epochs", 1.0), ("samples", 51_200), ("updates", 400)):
        changed = IN[unit].replace({f"schedule.warmup.{other}": value})
        assert changed.schedule.warmup.unit == other
        assert changed.warmup_epochs == 1.0
    overridden = plan(IN[unit], global_batch=256, rule="legw", overrides={"schedule.warmup.epochs": 3.0}).recipe
    assert overridden.to_dict()["schedule"]["warmup"]["epochs"] == 3.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule.warmup": {"kind": "gradual"}}, "give exactly one of epochs, samples, updates; got none"),
        ({"schedule.warmup": {"kind": "constant", "factor": 0.1, "epochs": 1, "samples": 2}}, "exactly one.*got epochs and samples"),
        ({"schedule.warmup": {"kind": "gradual", "updates": -1}}, "schedule.warmup.updates = -1"),
        ({"budget": {"tokens": 10}}, "tokens = 10: of how many samples, is not known; give tokens_per_sample"),
        ({"budget": {"epochs": 1, "tokens_per_sample": 8}}, "tokens_per_sample = 8 without tokens"),
        ({"budget": {"epochs": 1, "tokens": 8}}, "exactly one of epochs, samples, updates, tokens; got epochs and tokens"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        BASE.replace(changes)


def test_a_budget_in_tokens():
    """A million tokens in sequences of 512 are 1,953 samples; a plan keeps them, but for regime adaptation, which keeps the updates."""
    recipe = IN["epochs"].replace({"budget": {"tokens": 1_000_000, "tokens_per_sample": 512}, "schedule.warmup.epochs": 0.01})
    assert (recipe.total_samples, recipe.num_updates) == (1953, 16)
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert plan(recipe, global_batch=256, rule="sqrt").recipe.budget == recipe.budget
    assert plan(recipe, global_batch=256, rule="regime").recipe.budget.tokens == 2_000_000
