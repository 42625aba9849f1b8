import pytest
from tests.scaling.published import PUBLISHED, shrinkage

from bigbatch import plan
from bigbatch.scaling.rules.timescale import timescale_decay, without_timescale


def test_hand_worked_for_a_published_recipe():
    """512 to 4,096 of AdamW at 3e-4 and decay 0.1; tau = 512 / (3e-4 x 0.1 x 5,120,000) = 3.333 runs before and after."""
    planned = plan(PUBLISHED, global_batch=4096, rule="timescale").recipe
    o = planned.optimizer
    assert (o.name, o.lr, o.betas, o.eps) == ("adamw", 3e-4, (0.9, 0.95), 1e-8)
    assert o.weight_decay == pytest.approx(0.8)
    assert 4096 / (o.lr * o.weight_decay * planned.total_samples) == pytest.approx(3.333333)
    assert planned.schedule.warmup.updates == 25  # 200 x 512 samples, as before


@pytest.mark.parametrize("optimizer", ["adamw", "adamp", "sgdp", "muon", "soap_muon"])
@pytest.mark.parametrize("k", [0.5, 2, 8])
@pytest.mark.parametrize("warmup", [{"updates": 200}, {"samples": 100_000}, {"epochs": 0.02}])
@pytest.mark.parametrize("decay", [{"kind": "cosine"}, {"kind": "linear"}, {"kind": "wsd", "decay_fraction": 0.2}, {"kind": "constant"}])
def test_the_total_shrinkage_is_kept(optimizer, k, warmup, decay):
    """By a sum written out update by update."""
    extra = {"optimizer.adam_lr": 3e-4} if "muon" in optimizer else {}
    schedule = {"schedule.warmup": {"kind": "gradual", **warmup}, "schedule.decay": decay}
    reference = PUBLISHED.replace({"optimizer.name": optimizer, **extra, **schedule})
    planned = plan(reference, global_batch=round(512 * k), rule="timescale")
    assert not [w for w in planned.warnings if w.kind != "evidence"] or k < 1
    assert shrinkage(planned.recipe) == pytest.approx(shrinkage(reference), rel=1e-2)
    assert planned.recipe.optimizer.lr == reference.optimizer.lr


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"optimizer.weight_decay": 0.0}, "the reference has no weight decay"),
        ({"optimizer.name": "adam"}, "the weight decay of adam is not decoupled from the gradient"),
        ({"optimizer.name": "sgd"}, "the weight decay of sgd is not decoupled from the gradient"),
        ({"optimizer.name": "lamb"}, "the weight decay of lamb is not decoupled from the gradient"),
    ],
)
@pytest.mark.parametrize("batch", [256, 1024])
def test_without_a_timescale_only_the_batch_changes_and_is_said(changes, why, batch):
    reference = PUBLISHED.replace(changes)
    planned = plan(reference, global_batch=batch, rule="timescale")
    assert {change.field for change in planned.changes} == {"batch.global_batch", "schedule.warmup.updates"}
    (warning,) = [w for w in planned.warnings if w.kind == "timescale"]
    assert why in warning
    for remedy in warning.remedies:
        assert not [w for w in plan(reference, global_batch=batch, rule=remedy.rule).warnings if w.kind == "timescale"]
    assert without_timescale(PUBLISHED) is None


def test_two_steps_are_one():
    assert timescale_decay(timescale_decay(0.1, 4), 2) == pytest.approx(timescale_decay(0.1, 8))
