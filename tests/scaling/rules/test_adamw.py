import pytest
from tests.scaling.published import PUBLISHED, shrinkage

from bigbatch import plan
from bigbatch.scaling.rules.adamw import beta2_at


def test_hand_worked_for_a_published_recipe():
    """512 to 4,096 of AdamW at 3e-4, decay 0.1, betas 0.9 and 0.95: k = 8."""
    planned = plan(PUBLISHED, global_batch=4096, rule="adamw").recipe
    assert planned.optimizer.name == "adamw"
    assert planned.optimizer.lr == pytest.approx(8.48528e-4, rel=1e-5)
    assert planned.optimizer.betas == (0.9, 0.95)  # 0.95^8 = 0.6634 lies below the floor
    assert planned.num_updates == 1250
    assert planned.warmup_samples == 200 * 4096  # as many updates
    assert shrinkage(planned) == pytest.approx(shrinkage(PUBLISHED), rel=1e-2)
    assert 0.28 < planned.optimizer.weight_decay < 0.32  # 0.1 sqrt(8) = 0.283, and more for the longer warm-up


@pytest.mark.parametrize(
    ("beta2", "k", "expected"), [(0.999, 8, 0.999**8), (0.9999, 64, 0.9999**64), (0.99, 16, 0.95), (0.9, 4, 0.9), (0.95, 0.5, 0.95**0.5)]
)
def test_the_half_life_is_kept_in_samples_down_to_the_floor(beta2, k, expected):
    assert beta2_at(beta2, k) == pytest.approx(expected, rel=1e-12)


def test_a_constant_schedule_needs_the_root_of_k():
    flat = PUBLISHED.replace({"schedule.warmup.kind": "none", "schedule.decay.kind": "constant"})
    for k in (2, 8, 16):
        assert plan(flat, global_batch=512 * k, rule="adamw").recipe.optimizer.weight_decay == pytest.approx(0.1 * k**0.5, rel=1e-4)


def test_the_optimizer_is_kept_and_the_reason_names_the_floor():
    planned = plan(PUBLISHED, global_batch=1024, rule="adamw")
    fields = {change.field for change in planned.changes}
    assert fields == {"batch.global_batch", "optimizer.lr", "optimizer.weight_decay"}  # at the floor already, and warm-up updates stay
    higher = plan(PUBLISHED.replace({"optimizer.betas": (0.9, 0.98)}), global_batch=4096, rule="adamw")
    (betas,) = [change for change in higher.changes if change.field == "optimizer.betas"]
    assert betas.after == (0.9, 0.95)
    assert betas.why == "beta2^k = 0.8508: as many samples to the half of a squared gradient's weight; not below 0.95"
