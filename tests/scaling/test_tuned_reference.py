"""A tuned reference is information: as k tends to 1, every rule tends to it, whatever its optimizer and schedule."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scaling.published import shrinkage

from bigbatch import Recipe, plan
from bigbatch.core.clock import Clock
from bigbatch.recipe import recipe_names
from bigbatch.recipe.sections import KINDS
from bigbatch.scaling import RULES
from bigbatch.scaling.rules.weight_decay import total_shrinkage
from bigbatch.schedules import schedule_of

BATCH = 10_000
OWN = {
    "lars": {"lars"},
    "lamb": {"lamb"},
    "adam": {"adam", "adamw"},
    "adamw": {"adam", "adamw", "adamp"},
    "sde": {"adam", "adamw", "adamp"},
    "adamp": {"adamp"},
    "muon": {"muon", "soap_muon"},
    "soap_muon": {"soap_muon"},
}
"""Rules that change the optimizer, unless it is one of these."""
OPTIMIZERS = {name: {"optimizer.name": name, **({"optimizer.adam_lr": 0.007} if "muon" in name else {})} for name in KINDS["optimizer"]}
WARMUPS = {
    "none": {"kind": "none"},
    "gradual": {"kind": "gradual", "epochs": 1.5, "start_factor": 0.125},
    "long": {"kind": "gradual", "epochs": 12.0},
    "constant": {"kind": "constant", "epochs": 0.7, "factor": 0.2},
    "autowu": {"kind": "autowu"},
}
DECAYS = {
    "constant": {"kind": "constant"},
    "step": {"kind": "step", "milestones": [14.0, 18.0]},
    "cosine": {"kind": "cosine", "final_factor": 0.1},
    "linear": {"kind": "linear"},
    "wsd": {"kind": "wsd", "decay_fraction": 0.3},
}
LENGTHS = {
    "none": {"kind": "none"},
    "epochs": {"kind": "gradual", "epochs": 1.5, "start_factor": 0.125},
    "constant": {"kind": "constant", "epochs": 0.7, "factor": 0.2},
    "updates": {"kind": "gradual", "updates": 75},
    "samples": {"kind": "gradual", "samples": 1_234_567},
}
"""Warm-ups in every unit."""
MOMENTA = {"sgd", "sgdp", "lars", "muon", "soap_muon"}


def tuned(optimizer, warmup, decay, *, combine="sequential"):
    changes = {
        **OPTIMIZERS[optimizer],
        "optimizer.lr": 0.03,
        "optimizer.weight_decay": 0.02,
        **({"optimizer.momentum": 0.7} if optimizer in MOMENTA else {}),
        "schedule.warmup": WARMUPS[warmup],
        "schedule.decay": DECAYS["constant" if warmup == "autowu" else decay],
        "schedule.combine": combine,
        "num_train_samples": 500_000,
        "batch.global_batch": BATCH,
        "batch.ghost_batch": "global",
        "model": {"zero_init_last_gamma": False, "forget_bias": 0.0},
        "budget.epochs": 20,
    }
    return Recipe.named("fashion_mnist/cnn").replace(changes)


def numbers(recipe, changed=("batch.global_batch",)):
    """All fields but those that follow the batch."""
    fields = recipe.to_flat_dict()
    if fields.get("batch.ghost_batch") in ("global", BATCH, BATCH + 1):
        fields["batch.ghost_batch"] = BATCH
    return {name: value for name, value in fields.items() if name not in changed}


PAIRS = [(rule, optimizer) for rule in (*RULES, "auto") for optimizer in OPTIMIZERS if optimizer in OWN.get(rule, OPTIMIZERS)]


@pytest.mark.parametrize(("rule", "optimizer"), PAIRS)
def test_every_rule_tends_to_the_reference(rule, optimizer):
    """One sample more in ten thousand: no field moves by more than a few parts in ten thousand, and no flag flips."""
    for warmup, decay in product(WARMUPS, DECAYS):
        reference = tuned(optimizer, warmup, decay)
        check_near(plan(reference, global_batch=BATCH + 1, rule=rule).recipe, reference)


def check_near(planned, reference, rel=1e-3):
    old, new = numbers(reference), numbers(planned)
    start = new.pop("schedule.warmup.start_factor", None), old.pop("schedule.warmup.start_factor", None)
    if new["schedule.warmup.kind"] == "gradual" and old["schedule.warmup.kind"] == "none":  # Goyal's ramp, from 1/k over nothing
        assert start[0] == pytest.approx(1, rel=rel)
        assert new.pop("schedule.warmup.epochs") < rel
        new["schedule.warmup.kind"] = "none"
    elif start[1] is not None:
        assert start[0] == pytest.approx(start[1], rel=rel, abs=rel)
    assert new == {name: pytest.approx(value, rel=rel) if isinstance(value, float | tuple) else value for name, value in old.items()}


VARIANTS = [None, *OPTIMIZERS]


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_tends_to_every_named_recipe(rule, name):
    """At k a little above one, with the recipe's own optimizer and all others that the rule keeps."""
    named, k = Recipe.named(name), 1 + 1e-6
    for variant in VARIANTS:
        reference = named if variant is None else named.replace({**OPTIMIZERS[variant], "optimizer.weight_decay": 0.02})
        if reference.optimizer.name in OWN.get(rule, OPTIMIZERS):
            changes = RULES[rule].build(reference, k)
            check_near(reference.replace({change.field: change.after for change in changes}), reference, rel=1e-4)


@pytest.mark.parametrize("warmup", [name for name in WARMUPS if name != "autowu"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adamp"])
def test_muon_tends_to_the_rates_and_schedule_of_adam(optimizer, warmup):
    """The optimizer is another, but a step is as large, and all else is the reference's."""
    for decay in DECAYS:
        reference = tuned(optimizer, warmup, decay).replace({"optimizer.betas": (0.8, 0.97), "optimizer.eps": 1e-7})
        planned = plan(reference, global_batch=BATCH + 1, rule="muon").recipe
        o = planned.optimizer
        assert (o.name, o.betas, o.eps, o.momentum) == ("muon", (0.8, 0.97), 1e-7, 0.95)
        assert (o.lr, o.adam_lr) == pytest.approx((0.03, 0.03), rel=1e-3)
        assert o.weight_decay == (0.1 if optimizer == "adam" else pytest.approx(0.02, rel=1e-3))  # published: Adam's has no equivalent
        old, new = ({n: v for n, v in numbers(r).items() if not n.startswith("optimizer.")} for r in (reference, planned))
        assert new == {n: pytest.approx(v, rel=1e-3) if isinstance(v, float | tuple) else v for n, v in old.items()}


@pytest.mark.parametrize("warmup", ["none", "gradual", "constant"])
@pytest.mark.parametrize("combine", ["sequential", "product"])
@pytest.mark.parametrize("rule", ["linear", "sqrt", "legw", "muon", "adam"])
def test_the_rate_curve_tends_to_the_references(rule, combine, warmup):
    name = {"muon": "muon", "adam": "adamw"}.get(rule, "sgd")
    reference = tuned(name, warmup, "cosine", combine=combine)
    planned = plan(reference, global_batch=BATCH + 1, rule=rule).recipe
    small, large = schedule_of(reference), schedule_of(planned)
    for part in range(100):
        clock = Clock(round(part / 100 * reference.total_samples))
        assert planned.optimizer.lr * large(clock) == pytest.approx(reference.optimizer.lr * small(clock), rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rule", OWN)
def test_a_rule_that_changes_the_optimizer_keeps_what_is_not_the_optimizers(rule, optimizer):
    reference = tuned(optimizer, "gradual", "cosine").replace({"optimizer.clip_norm": 1.5})
    for batch in (BATCH + 1, 4 * BATCH):
        planned = plan(reference, global_batch=batch, rule=rule).recipe
        assert planned.total_samples == reference.total_samples
        assert planned.optimizer.clip_norm == 1.5
        assert planned.model["zero_init_last_gamma"] is False
        assert (planned.precision, planned.comm, planned.seed) == (reference.precision, reference.comm, reference.seed)
        assert planned.optimizer.name in OWN[rule]


@settings(max_examples=120, deadline=None)
@given(
    rule=st.sampled_from(["muon", "adam", "adamp", "adamw", "sde"]),
    optimizer=st.sampled_from(["sgd", "sgdp", "adamw", "adamp", "muon"]),
    warmup=st.sampled_from(list(LENGTHS)),
    decay=st.sampled_from(list(DECAYS)),
    combine=st.sampled_from(["sequential", "product"]),
    k=st.sampled_from([0.5, 1.5, 2.0, 4.0, 16.0, 50.0]),
)
def test_the_total_shrinkage_is_kept_whatever_the_schedules(rule, optimizer, warmup, decay, combine, k):
    """By a sum written out update by update, not the rule's own function."""
    reference = tuned(optimizer, "none", decay, combine=combine).replace({"schedule.warmup": LENGTHS[warmup]})
    planned = plan(reference, global_batch=round(k * BATCH), rule=rule).recipe
    assert shrinkage(planned) == pytest.approx(shrinkage(reference), rel=1e-4)
    assert total_shrinkage(reference) == pytest.approx(shrinkage(reference), rel=1e-9)
