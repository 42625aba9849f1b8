import pytest

from bigbatch import Recipe, plan
from bigbatch.core.clock import Clock
from bigbatch.scaling.rules.linear import linear_lr, ramp
from bigbatch.schedules import schedule_of

IMAGENET = Recipe.from_toml(
    """
    num_train_samples = 1281167
    [optimizer]
    name = "sgd"
    lr = 0.1
    momentum = 0.9
    nesterov = true
    weight_decay = 1e-4
    [schedule.decay]
    kind = "step"
    milestones = [30, 60, 80]
    [batch]
    global_batch = 256
    ghost_batch = 32
    [model]
    zero_init_last_gamma = false
    [budget]
    epochs = 90
    """
)


@pytest.mark.parametrize(
    ("kn", "eta"),
    [(64, 0.025), (128, 0.05), (256, 0.1), (512, 0.2), (1024, 0.4), (2048, 0.8), (4096, 1.6), (8192, 3.2), (16384, 6.4), (65536, 25.6)],
)
def test_goyals_table_of_rates(kn, eta):
    """Figure 1 and 3 of the paper: 0.1 kn / 256."""
    assert linear_lr(0.1, kn / 256) == pytest.approx(eta, rel=1e-12)
    assert plan(IMAGENET, global_batch=kn, rule="linear").recipe.optimizer.lr == pytest.approx(eta, rel=1e-12)


def test_changes_what_goyal_changes_and_nothing_else():
    planned = plan(IMAGENET, global_batch=8192, rule="linear")
    assert {c.field: c.after for c in planned.changes} == {
        "batch.global_batch": 8192,
        "optimizer.lr": pytest.approx(3.2),
        "schedule.warmup.kind": "gradual",
        "schedule.warmup.epochs": 5.0,
        "schedule.warmup.start_factor": 1 / 32,
        "model.zero_init_last_gamma": True,
    }
    assert len(planned.recipe.differences(IMAGENET)) == len(planned.changes)
    assert all(c.paper is not None and c.paper.arxiv == "1706.02677" for c in planned.changes if c.field != "batch.global_batch")


def test_the_warmup_starts_at_the_base_rate_and_ends_at_the_peak_after_five_epochs():
    recipe = plan(IMAGENET, global_batch=8192, rule="linear").recipe
    schedule, epoch = schedule_of(recipe), recipe.num_train_samples
    lrs = [recipe.optimizer.lr * schedule(Clock(samples=round(e * epoch))) for e in (0, 2.5, 5, 29.9, 30, 60)]
    assert lrs == pytest.approx([0.1, (0.1 + 3.2) / 2, 3.2, 3.2, 0.32, 0.032], rel=1e-6)


def test_a_global_normalisation_group_becomes_the_references():
    recipe = IMAGENET.replace({"batch.ghost_batch": "global"})
    assert plan(recipe, global_batch=8192, rule="linear").recipe.batch.ghost_batch == 256


def test_a_smaller_batch_needs_no_warmup():
    planned = plan(IMAGENET, global_batch=64, rule="linear")
    assert planned.recipe.schedule.warmup.kind == "none"
    assert any("the batch shrinks" in warning for warning in planned.warnings)


def test_a_longer_warmup_of_the_reference_is_kept():
    """It used to be cut to 5 epochs."""
    tuned = IMAGENET.replace({"schedule.warmup": {"kind": "gradual", "epochs": 20, "start_factor": 0.0}})
    warmup = plan(tuned, global_batch=8192, rule="linear").recipe.schedule.warmup
    assert (warmup.epochs, warmup.start_factor) == (20, 0)


@pytest.mark.parametrize("k", [1.5, 2, 8, 32])
@pytest.mark.parametrize(("epochs", "start"), [(0.1, 0.0), (2, 0.25), (5, 0.0), (20, 0.5)])
def test_the_warmup_starts_lower_by_as_much_as_the_references(k, epochs, start):
    """Area between the ramp and Goyal's own, from 1/k of the peak, in units of the reference's rate: that of the reference's warm-up."""
    got = ramp(k, epochs=epochs, start_factor=start)
    assert got.epochs == max(epochs, 5 * min(1, k - 1))
    below = (1 / k - got.start_factor) * k * got.epochs / 2
    assert below == pytest.approx((1 - start) * epochs / 2)


def test_autowu_keeps_its_own_warmup_and_decay():
    """The rule used to replace it by a ramp, after which nothing decayed."""
    learned = IMAGENET.replace({"schedule.warmup": {"kind": "autowu"}, "schedule.decay": {"kind": "constant"}})
    planned = plan(learned, global_batch=8192, rule="linear")
    assert planned.recipe.schedule == learned.schedule
    assert planned.recipe.optimizer.lr == pytest.approx(3.2)  # the highest rate to try
