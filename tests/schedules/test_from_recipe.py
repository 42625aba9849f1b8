import pytest

from bigbatch import Recipe
from bigbatch.core.clock import Clock
from bigbatch.schedules import schedule_of


def recipe(**changes):
    plain = {"schedule.warmup.kind": "none", "schedule.decay.kind": "constant", "num_train_samples": 1000, "budget.epochs": 10}
    return Recipe.named("digits/mlp").replace({**plain, **changes})


@pytest.mark.parametrize(
    ("changes", "samples", "factors"),
    [
        ({}, (0, 5_000), (1, 1)),
        (
            {"schedule.warmup.kind": "gradual", "schedule.warmup.epochs": 2, "schedule.warmup.start_factor": 0.5},
            (0, 1000, 2000),
            (0.5, 0.75, 1),
        ),
        ({"schedule.warmup.kind": "constant", "schedule.warmup.epochs": 2, "schedule.warmup.factor": 0.1}, (1999, 2000), (0.1, 1)),
        (
            {"schedule.decay.kind": "step", "schedule.decay.milestones": [3, 6], "schedule.decay.factor": 0.5},
            (2999, 3000, 6000),
            (1, 0.5, 0.25),
        ),
        ({"schedule.decay.kind": "polynomial"}, (5_000, 10_000), (0.25, 0)),
        ({"schedule.decay.kind": "cosine", "schedule.decay.final_factor": 0.5}, (5_000, 10_000), (0.75, 0.5)),
        ({"schedule.decay.kind": "linear"}, (2_500, 10_000), (0.75, 0)),
    ],
)
def test_epochs_become_samples(changes, samples, factors):
    schedule = schedule_of(recipe(**changes))
    assert [schedule(Clock(samples=s)) for s in samples] == pytest.approx(factors)


GRADUAL = {"schedule.warmup.kind": "gradual", "schedule.warmup.epochs": 2}


@pytest.mark.parametrize(
    ("decay", "factors"),  # of 10 epochs of 1,000 samples, warm-up to 2: at 1, 2, 6, 10 epochs
    [
        ({"kind": "cosine"}, (0.5, 1, 0.5, 0)),
        ({"kind": "linear", "final_factor": 0.2}, (0.5, 1, 0.6, 0.2)),
        ({"kind": "polynomial"}, (0.5, 1, 0.25, 0)),
        ({"kind": "wsd", "decay_fraction": 0.8, "shape": "linear"}, (0.5, 1, 0.5, 0)),
        ({"kind": "step", "milestones": [6], "factor": 0.1}, (0.5, 1, 0.1, 0.1)),
        ({"kind": "constant"}, (0.5, 1, 1, 1)),
    ],
)
def test_up_to_the_peak_then_down_over_what_is_left(decay, factors):
    schedule = schedule_of(recipe(**GRADUAL, **{f"schedule.decay.{name}": value for name, value in decay.items()}))
    assert [schedule(Clock(samples=s)) for s in (1_000, 2_000, 6_000, 10_000)] == pytest.approx(factors)


def test_as_a_product_the_decay_runs_from_the_start():
    schedule = schedule_of(recipe(**GRADUAL, **{"schedule.decay.kind": "linear", "schedule.combine": "product"}))
    assert [schedule(Clock(samples=s)) for s in (1_000, 2_000, 6_000, 10_000)] == pytest.approx([0.45, 0.8, 0.4, 0])


def test_wsd_decays_over_a_part_of_the_whole_run():
    settings = {"schedule.decay.kind": "wsd", "schedule.decay.decay_fraction": 0.2, "schedule.decay.shape": "linear"}
    schedule = schedule_of(recipe(**GRADUAL, **settings))
    assert [schedule(Clock(samples=s)) for s in (2_000, 8_000, 9_000)] == pytest.approx([1, 1, 0.5])


def test_a_warmup_as_long_as_the_run_leaves_no_decay():
    schedule = schedule_of(recipe(**{**GRADUAL, "schedule.warmup.epochs": 10, "schedule.decay.kind": "cosine"}))
    assert [schedule(Clock(samples=s)) for s in (5_000, 9_999)] == pytest.approx([0.5, 0.9999])


def test_what_an_older_version_saved_is_still_a_product():
    """Saved before there was a choice; a run that is resumed must not change its schedule in silence."""
    old = recipe(**GRADUAL, **{"schedule.decay.kind": "linear"}).to_dict()
    del old["schedule"]["combine"]
    assert Recipe.from_saved(old).schedule.combine == "product"
    assert Recipe.from_dict(old).schedule.combine == "sequential"
    del old["schedule"]["warmup"]
    assert Recipe.from_saved(old).schedule.combine == "sequential"  # no difference
