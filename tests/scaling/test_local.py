import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigbatch import Recipe, UserError, plan
from bigbatch.scaling.local import INNER_MULTIPLE, exchanges, local_steps

MLP = Recipe.named("fashion_mnist/mlp")
RESNET = Recipe.named("fashion_mnist/resnet8")


def test_hand_worked():  # 64 x 128 samples between exchanges, in updates of 4 x 128: 16 of them; 550,000 samples are 67.1 exchanges
    steps = local_steps(MLP, 64 * 128, workers=4)
    assert steps[1:] == (8192, 512, 16, None)
    assert exchanges(steps, MLP) == 68


@settings(max_examples=60, deadline=None)
@given(multiple=st.floats(0.1, 400), workers=st.integers(1, 64))
def test_the_samples_are_those_asked_for(multiple, workers):
    asked = max(round(multiple * 128), workers)
    steps = local_steps(RESNET, asked, workers)
    assert steps.samples == steps.inner_batch * steps.period
    assert abs(steps.samples - asked) <= steps.period / 2 or steps.inner_batch == workers
    assert steps.inner_batch <= 1.5 * INNER_MULTIPLE * 128 or steps.inner_batch == workers
    assert steps.ghost_batch is None or steps.ghost_batch == steps.inner_batch // workers < 128


@pytest.mark.parametrize("name", ["fashion_mnist/mlp", "fashion_mnist/resnet8", "text/gpt", "text/gpt-muon", "digits/mlp"])
@pytest.mark.parametrize("multiple", [1, 2, 16, 64])
def test_the_inner_updates_are_planned_for_their_batch(name, multiple):
    named = Recipe.named(name)
    planned = plan(named, global_batch=multiple * named.batch.global_batch, rule="local", workers=4)
    recipe, steps = planned.recipe, planned.local
    inner = plan(named, global_batch=steps.inner_batch)
    assert recipe.optimizer == inner.recipe.optimizer
    assert recipe.schedule == inner.recipe.schedule
    assert recipe.total_samples == named.total_samples
    assert (recipe.comm.kind, recipe.comm.period, recipe.batch.global_batch) == ("local_sgd", steps.period, steps.inner_batch)
    assert planned.multiple == pytest.approx(multiple)
    assert planned.rule == "local"
    assert planned.to_dict()["local"]["workers"] == 4
    for change in planned.changes:
        assert change.why
        assert named.get(change.field) == change.before
        assert recipe.get(change.field) == change.after


def test_groups_are_not_cut_in_two():
    few, many = (plan(RESNET, global_batch=64 * 128, rule="local", workers=n) for n in (4, 16))
    assert few.recipe.batch.ghost_batch == 128
    assert many.recipe.batch.ghost_batch == 32
    assert any("groups shrink from 128 to 32" in text for text in many.warnings)


def test_what_is_doubtful_is_said():
    assert any("67 exchanges" in text or "exchange" in text for text in plan(MLP, global_batch=512 * 128, rule="local", workers=4).warnings)
    assert any("as by all-reduce" in text for text in plan(MLP, global_batch=4 * 128, rule="local", workers=4).warnings)
    assert not any("exchange" in text for text in plan(MLP, global_batch=64 * 128, rule="local", workers=4).warnings)
    for k, workers in ((65, 4), (64, 5)):
        reach = next(w for w in plan(MLP, global_batch=k * 128, rule="local", workers=workers).warnings if w.kind == "reach")
        assert f"{k} times the tuned batch between exchanges of {workers} workers: 64 times and 4 workers are the most" in reach
        assert [remedy.global_batch for remedy in reach.remedies] == ([8192] if k > 64 else [])


def test_overrides_come_last():
    planned = plan(MLP, global_batch=64 * 128, rule="local", workers=4, overrides={"comm.period": 5, "optimizer.lr": 0.25})
    assert (planned.recipe.comm.period, planned.recipe.optimizer.lr) == (5, 0.25)
    outer = {"kind": "diloco", "period": 8, "outer_lr": 0.7}
    assert plan(MLP, global_batch=64 * 128, rule="local", workers=4, overrides={"comm": outer}).recipe.comm.outer_lr == 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_batch": 8192}, "needs the number of workers that exchange; give workers"),
        ({"global_batch": 8192, "workers": 0}, "workers = 0"),
        ({"global_batch": 3, "workers": 4}, "3 samples between exchanges of 4 workers: fewer than one each"),
        ({"global_batch": 10**6, "workers": 4}, "more than the run has, 550,000"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        plan(MLP, rule="local", **arguments)


def test_remedies_of_inner_updates_that_would_mean_something_else_are_not_offered():
    for batch, workers in ((8192, 4), (1024, 6)):
        planned = plan(RESNET, global_batch=batch, rule="local", workers=workers, noise_scale=300)
        assert "optimizer" in [warning.kind for warning in planned.warnings]
        for warning in planned.warnings:
            assert warning.kind == "reach" or not warning.remedies, warning
            assert "--rule" not in warning


def test_a_worker_s_share_is_what_groups_must_fit():
    kinds = [w.kind for w in plan(RESNET, global_batch=9 * 128, rule="local", workers=4).warnings]  # 576 an update, 144 a worker
    assert "odd group" in kinds
    assert "odd group" not in [w.kind for w in plan(RESNET, global_batch=8192, rule="local", workers=4).warnings]


def test_a_forward_pass_holds_the_smaller_groups():
    planned = plan(RESNET.replace({"batch.micro_batch": 128}), global_batch=1024, rule="local", workers=6)
    assert (planned.recipe.batch.ghost_batch, planned.recipe.batch.micro_batch) == (85, "auto")
