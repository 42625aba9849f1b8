"""Every warning has a remedy that can be typed as it is printed, and ends it."""

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigbatch import Recipe, plan
from bigbatch.cli.options.sets import parse_set as _parse
from bigbatch.cli.options.sets import split_sets
from bigbatch.scaling import RULES
from bigbatch.scaling.warnings import largest_factor

MLP, RESNET = Recipe.named("fashion_mnist/mlp"), Recipe.named("fashion_mnist/resnet8")
ADAMW = {"optimizer.name": "adamw", "optimizer.lr": 1e-3, "optimizer.weight_decay": 0.1}
WITHOUT_REMEDY = {"smaller", "evidence", "batch's schedule", "dropped groups"}
RAMP = {"kind": "ramp", "largest": 512, "over_samples": 1_000_000}


def as_typed(options, recipe, **arguments):
    """What `bigbatch plan` does with the options of a remedy."""
    words, sets = shlex.split(" ".join(options)), []
    arguments = dict(arguments)
    for option, value in zip(words[::2], words[1::2], strict=True):
        if option == "--set":
            sets.append(value)
        else:
            arguments[option.removeprefix("--").replace("-", "_")] = int(value) if value.isdigit() else value
    sets, overrides = split_sets(sets)
    return plan(recipe.replace(dict(_parse(text) for text in sets)), **arguments, overrides=overrides)


def check_remedies(recipe, **arguments):
    kinds, found = set(), plan(recipe, **arguments).warnings
    text = [w.kind for w in found]
    for warning in found:
        kinds.add(warning.kind)
        without_remedy = warning.kind in WITHOUT_REMEDY or (warning.kind == "global group" and "smaller" in text)
        assert warning.remedies or without_remedy, str(warning)
        for remedy in warning.remedies:
            assert " ".join(remedy.options) in warning  # it is printed
            after = as_typed(remedy.options, recipe, **arguments)
            assert warning.kind not in [w.kind for w in after.warnings], (str(warning), [str(w) for w in after.warnings])
    return kinds


@pytest.mark.parametrize(
    ("changes", "arguments", "kind"),
    [
        ({"schedule.warmup.epochs": 1}, {"global_batch": 8192, "rule": "legw"}, "warm-up"),
        ({"schedule.decay": {"kind": "step", "milestones": [3]}}, {"global_batch": 256, "rule": "linear"}, "milestone"),
        ({"schedule.combine": "product", "schedule.warmup.epochs": 0.6}, {"global_batch": 1024, "rule": "legw"}, "peak"),
        (ADAMW, {"global_batch": 1024, "rule": "lars"}, "weight decay"),
        ({**ADAMW, "schedule.warmup.epochs": 1}, {"global_batch": 1024, "rule": "adamw"}, "long warm-up"),
        ({**ADAMW, "schedule.warmup.epochs": 0.8}, {"global_batch": 1024, "rule": "legw"}, "long warm-up"),
        ({}, {"global_batch": 1024, "rule": "regime"}, "cost"),
        ({}, {"global_batch": 4096, "rule": "muon"}, "reach"),
        ({}, {"global_batch": 1024, "rule": "lars"}, "optimizer"),
        (ADAMW, {"global_batch": 1024, "rule": "muon"}, "optimizer"),
        ({"optimizer.name": "lamb", "optimizer.lr": 0.01}, {"global_batch": 1024, "rule": "sqrt"}, "evidence"),
        ({"budget.epochs": 10_000}, {"global_batch": 1024, "rule": "sqrt"}, "evidence"),
        ({}, {"global_batch": 8192, "rule": "sqrt"}, "few updates"),
        ({"budget.epochs": None, "budget.updates": 700}, {"global_batch": 8192, "rule": "sqrt"}, "few updates"),
        (ADAMW, {"global_batch": 1024, "rule": "linear"}, "linear"),
        (ADAMW, {"global_batch": 1024, "rule": "sde"}, "sde"),
        ({**ADAMW, "optimizer.betas": (0.3, 0.9)}, {"global_batch": 256, "rule": "sde"}, "sde"),
        (ADAMW | {"optimizer.weight_decay": 0.0}, {"global_batch": 1024, "rule": "timescale"}, "timescale"),
        ({"optimizer.name": "adam", "optimizer.lr": 1e-3}, {"global_batch": 1024, "rule": "timescale"}, "timescale"),
        ({}, {"global_batch": 64, "rule": "timescale"}, "timescale"),
        ({"schedule.warmup.kind": "none"}, {"global_batch": 1024, "rule": "legw"}, "no warm-up"),
        ({"schedule.warmup": {"kind": "gradual", "epochs": 0}}, {"global_batch": 1024, "rule": "legw"}, "no warm-up"),
        ({"optimizer.groups": {"1.*": "weights"}}, {"global_batch": 1024, "rule": "muon"}, "dropped groups"),
        ({"optimizer.weight_decay": 0.01}, {"global_batch": 8192, "rule": "muon"}, "strong decay"),
        ({**ADAMW, "optimizer.weight_decay": 9.0}, {"global_batch": 8192, "rule": "timescale"}, "strong decay"),
        ({"comm": {"kind": "local_sgd", "period": 8}}, {"global_batch": 512, "rule": "legw"}, "period"),
        ({"batch.ghost_batch": "global"}, {"global_batch": 1024, "rule": "none"}, "global group"),
        ({"batch.ghost_batch": 128}, {"global_batch": 1000, "rule": "sqrt"}, "odd group"),
        ({}, {"global_batch": 1024, "rule": "sqrt", "noise_scale": 300.0}, "noise scale"),
        ({}, {"global_batch": 64, "rule": "sqrt"}, "smaller"),
        ({"batch.rule": RAMP}, {"global_batch": 256, "rule": "sqrt"}, "end of the batch's schedule"),
        ({"batch.rule": RAMP, "budget": {"updates": 300}}, {"global_batch": 128, "rule": "none"}, "end of the batch's schedule"),
        ({"batch.rule": RAMP}, {"global_batch": 256, "rule": "sqrt"}, "batch's schedule"),
    ],
)
def test_each_remedy_ends_its_warning(changes, arguments, kind):
    assert kind in check_remedies(MLP.replace(changes), **arguments)


@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from([*RULES, "auto"]),
    optimizer=st.sampled_from([{}, ADAMW, {"optimizer.name": "lars"}, {"optimizer.name": "muon", "optimizer.adam_lr": 0.01}]),
    warmup=st.sampled_from([{"kind": "none"}, {"kind": "gradual", "epochs": 0.4}, {"kind": "constant", "epochs": 2, "factor": 0.1}]),
    decay=st.sampled_from([{"kind": "cosine"}, {"kind": "step", "milestones": [4, 8]}, {"kind": "wsd"}, {"kind": "constant"}]),
    combine=st.sampled_from(["sequential", "product"]),
    ghost=st.sampled_from(["global", 128, 96]),
    epochs=st.sampled_from([2.0, 9.5, 30.0]),
    batch=st.integers(32, 30_000),
)
def test_whatever_the_plan_its_remedies_end_their_warnings(rule, optimizer, warmup, decay, combine, ghost, epochs, batch):
    settings = {"schedule.warmup": warmup, "schedule.decay": decay, "schedule.combine": combine, "budget.epochs": epochs}
    check_remedies(RESNET.replace({**optimizer, **settings, "batch.ghost_batch": ghost}), rule=rule, global_batch=batch)


@pytest.mark.parametrize("rule", [*RULES, "auto"])
def test_a_plan_reaches_its_peak_or_says_so(rule):
    """At 32 times, linear, LARS and LAMB used to reach half of optimizer.lr without a word."""
    for combine in ("sequential", "product"):
        planned = plan(MLP.replace({"schedule.warmup.epochs": 0.3, "schedule.combine": combine}), global_batch=4096, rule=rule)
        said = {w.kind for w in planned.warnings} & {"peak", "warm-up"}
        assert bool(said) == (largest_factor(planned.recipe) < 0.9)
        if combine == "sequential" and rule not in ("legw",):
            assert not said


def test_the_largest_factor_by_hand():
    """Ten updates of a linear decay; the warm-up of five ends where half of it is over."""
    recipe = MLP.replace(
        {
            "num_train_samples": 1280,
            "budget.epochs": 1,
            "schedule.warmup": {"kind": "gradual", "epochs": 0.5},
            "schedule.decay": {"kind": "linear"},
            "schedule.combine": "product",
        }
    )
    assert largest_factor(recipe) == pytest.approx(0.5)
    assert largest_factor(recipe.replace({"schedule.combine": "sequential"})) == pytest.approx(1)


@pytest.mark.parametrize(
    ("rule", "overrides", "said"),
    [
        ({"kind": "ramp", "largest": 512, "over_samples": 549_999}, {}, "the rule goes on to 512, as before"),
        ({"kind": "schedule", "steps": [[1000, 256], [2000, 300]]}, {}, "the rule goes on to 256, 300, as before"),
        ({"kind": "late", "largest": 512, "after": 0.5}, {"batch.rule.largest": 1024}, ""),
        ({"kind": "seesaw", "largest": 512}, {}, ""),
    ],
    ids=lambda value: value.get("kind", "") if isinstance(value, dict) else None,
)
def test_a_plan_says_that_the_batches_of_a_schedule_stay(rule, overrides, said):
    """The run has 550,000 samples."""
    found = [str(w) for w in plan(MLP.replace({"batch.rule": rule}), global_batch=256, rule="sqrt", overrides=overrides).warnings]
    about = [text for text in found if "batch.rule" in text]
    assert len(about) == bool(said)
    assert all(said in text for text in about)
