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
