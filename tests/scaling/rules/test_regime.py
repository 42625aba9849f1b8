import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch import Recipe, UserError, plan
from bigbatch.core.clock import Clock
from bigbatch.scaling.rules.regime import longer
from bigbatch.schedules.from_recipe import schedule_of

RESNET = Recipe.named("fashion_mnist/resnet8")
STEPS = RESNET.replace({"schedule.decay.kind": "step", "schedule.decay.milestones": [4.0, 8.0], "schedule.decay.factor": 0.1})


def test_hand_worked():  # 12 epochs of 128 are 192 epochs of 2,048; the rate grows by sqrt(16) = 4
    assert longer(12, 16) == 192
    reference = STEPS.replace({"batch.ghost_batch": "global"})
    recipe = plan(reference, global_batch=2048, rule="regime").recipe
    assert recipe.budget.epochs == 192
    assert recipe.schedule.decay.milestones == (64.0, 128.0)
    assert recipe.schedule.warmup.epochs == pytest.approx(16 * RESNET.schedule.warmup.epochs)
    assert recipe.optimizer.lr == pytest.approx(4 * RESNET.optimizer.lr)
    assert recipe.optimizer.clip_norm == 5.0
    assert recipe.batch.ghost_batch == 128
    assert recipe.optimizer.weight_decay == RESNET.optimizer.weight_decay


@given(k=st.sampled_from([1, 2, 4, 16, 64]), update=st.integers(0, 1000))
def test_updates_are_kept_and_the_rate_at_each_is_the_root_of_k_times_the_references(k, update):
    planned = plan(STEPS, global_batch=128 * k, rule="regime")
    assert abs(planned.recipe.num_updates - STEPS.num_updates) <= 1
    small, large = schedule_of(STEPS), schedule_of(planned.recipe)
    assert large(Clock(update * 128 * k, update)) == pytest.approx(small(Clock(update * 128, update)))


@pytest.mark.parametrize(
    ("budget", "field", "after"),
    [
        ({"budget.epochs": None, "budget.updates": 500}, "budget.updates", 500),
        ({"budget.epochs": None, "budget.samples": 64_000}, "budget.samples", 512_000),
    ],
)
def test_other_budgets(budget, field, after):
    planned = plan(RESNET.replace(budget), global_batch=1024, rule="regime")
    assert planned.recipe.get(field) == after
    assert planned.recipe.num_updates == 500
    assert [c.field for c in planned.changes if c.field.startswith("budget")] == ([field] if field == "budget.samples" else [])


def test_a_bound_of_the_references_own_is_kept():
    planned = plan(RESNET.replace({"optimizer.clip_norm": 1.5}), global_batch=1024, rule="regime")
    assert planned.recipe.optimizer.clip_norm == 1.5


def test_the_plan_says_what_it_costs():
    text = "\n".join(plan(RESNET, global_batch=2048, rule="regime").warnings)
    assert "192 epochs instead of 12: regime adaptation computes 16 times as much" in text
    assert "computes" not in "\n".join(plan(RESNET, global_batch=128, rule="regime").warnings)


def test_a_batch_that_changes_is_refused():
    with pytest.raises(UserError, match=r'batch.rule.kind = "increase_batch": regime keeps the updates of a fixed batch; drop batch.rule'):
        plan(STEPS.replace({"batch.rule.kind": "increase_batch"}), global_batch=1024, rule="regime")
