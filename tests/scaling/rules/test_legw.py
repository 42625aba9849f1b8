import pytest

from bigbatch import Recipe, plan
from bigbatch.core.clock import Clock
from bigbatch.scaling.rules.legw import legw_lr, legw_warmup_epochs
from bigbatch.schedules import schedule_of

REFERENCE = Recipe.named("fashion_mnist/lstm").replace(
    {"num_train_samples": 65_536, "schedule.decay.kind": "constant", "schedule.warmup.epochs": 0.25, "budget.epochs": 32}
)


def test_hand_worked():  # k = 16: the rate times 4, the epochs times 16
    assert legw_lr(0.5, 16) == 2.0
    assert legw_warmup_epochs(0.25, 16) == 4.0


@pytest.mark.parametrize("multiple", [1, 2, 4, 8, 16, 32, 64])
def test_the_warmup_updates_are_the_same_at_every_multiple(multiple):
    recipe = plan(REFERENCE, global_batch=128 * multiple, rule="legw").recipe
    schedule, updates, clock = schedule_of(recipe), 0, Clock()
    factors = []
    while (factor := schedule(clock)) < 1:
        factors.append(factor)
        updates += 1
        clock = clock.after(recipe.batch.global_batch)
    assert updates == 0.25 * 65_536 / 128 == 128
    assert factors == pytest.approx([i / 128 for i in range(128)])  # from zero, a straight line per update
    assert recipe.optimizer.lr == pytest.approx(REFERENCE.optimizer.lr * multiple**0.5)


def test_everything_else_stays():
    planned = plan(REFERENCE, global_batch=1024, rule="legw")
    assert {c.field for c in planned.changes} == {"batch.global_batch", "optimizer.lr", "schedule.warmup.epochs"}


def test_a_reference_without_a_warmup_is_warned_about():
    planned = plan(REFERENCE.replace({"schedule.warmup.kind": "none"}), global_batch=1024, rule="legw")
    assert any("the reference has none" in warning for warning in planned.warnings)


def test_another_start_of_the_warmup_is_kept():
    constant = REFERENCE.replace({"schedule.warmup.kind": "constant", "schedule.warmup.epochs": 0.5, "schedule.warmup.factor": 0.1})
    warmup = plan(constant, global_batch=512, rule="legw").recipe.schedule.warmup
    assert (warmup.kind, warmup.epochs, warmup.factor) == ("constant", 2.0, 0.1)
    half = plan(REFERENCE.replace({"schedule.warmup.start_factor": 0.5}), global_batch=512, rule="legw").recipe.schedule.warmup
    assert (half.epochs, half.start_factor) == (1.0, 0.5)


def test_the_rate_reaches_its_peak():
    """With a cosine over 10 epochs it never exceeded a third of optimizer.lr, in silence."""
    reference = REFERENCE.replace({"schedule.decay.kind": "cosine", "schedule.warmup.epochs": 0.5, "budget.epochs": 10})
    planned = plan(reference, global_batch=1024, rule="legw")
    schedule, batch = schedule_of(planned.recipe), 1024
    factors = [schedule(Clock(update * batch, update)) for update in range(planned.recipe.num_updates)]
    assert max(factors) > 0.99
    assert factors[-1] < 1e-3
    old = plan(reference.replace({"schedule.combine": "product"}), global_batch=1024, rule="legw")
    (warning,) = [w for w in old.warnings if w.kind == "peak"]
    assert "0.65 of optimizer.lr" in warning
