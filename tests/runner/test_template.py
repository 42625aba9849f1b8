import shlex

import pytest
from tests.runner.scripts import RECIPE

from bigbatch import Recipe, UserError
from bigbatch.runner.fields import allows, check_words
from bigbatch.runner.template import Template

ADAMW = RECIPE.replace(
    {"optimizer": {"name": "adamw", "lr": 3e-4, "betas": (0.9, 0.95)}, "schedule.warmup": {"kind": "gradual", "epochs": 0.25}}
)


def filled(text, recipe=RECIPE, **settings):
    return Template(text, **settings).fill(recipe, out="/o u t", recipe_file="/r.toml")


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("a --lr {optimizer.lr}", ["a", "--lr", "0.1"]),
        ("a {optimizer.lr:.3e} {optimizer.lr:g}", ["a", "1.000e-01", "0.1"]),
        ("a {budget.epochs}", ["a", "2"]),  # a whole number has no point: argparse's int takes no "2.0"
        ("a {budget.epochs:.1f}", ["a", "2.0"]),
        ("a {num_updates} {total_samples} {epochs} {seed}", ["a", "256", "8192", "2", "0"]),
        ("a '{out}/x y' {recipe}", ["a", "/o u t/x y", "/r.toml"]),
        ("a '{{}}' {{x}}", ["a", "{}", "{x}"]),
        (["a b", "--x={batch.global_batch}"], ["a b", "--x=32"]),
    ],
)
def test_fields_by_name_with_formats_and_one_argument_each(text, arguments):
    assert filled(text) == arguments


def test_what_follows_from_the_recipe():
    wanted = ["0.9", "0.95", "0.95", "32", "1024", "4", "8"]
    assert (
        filled(
            "{beta1} {beta2} {optimizer.betas[1]} {warmup.updates} {warmup.samples} {accumulation} {device_batch}", ADAMW, device_batch=8
        )
        == wanted
    )
    assert filled("{accumulation} {device_batch}", RECIPE, device_batch=64) == ["1", "32"]
    assert filled("{accumulation} {device_batch}", RECIPE) == ["1", "32"]
    assert Template("{device_batch}").has_place_for("batch.global_batch")


def test_a_shell_reads_values_as_one_word_each():
    recipe = RECIPE.replace({"model": {"note": "it's; rm -rf $HOME"}})
    (line,) = filled("echo {model.note} > {out}", recipe, shell=True)
    assert shlex.split(line) == ["echo", "it's; rm -rf $HOME", ">", "/o u t"]
    assert filled("echo {model.note}", recipe) == ["echo", "it's; rm -rf $HOME"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a {optimizer.rl}", r"unknown field 'optimizer.rl': did you mean 'optimizer.lr'"),
        ("a {optimizer.clip_norm}", r"unknown field 'optimizer.clip_norm'.* a field that the recipe leaves out is not known: set it there"),
        ("a {}", r"\{\} has no name"),
        ("a {optimizer.lr:d}", r"can't be filled: .*; correct the format"),
        ("a {optimizer.lr", r"a quote or a brace is left open"),
        ("a 'b", r"a quote or a brace is left open"),
        ("", r"command: is empty"),
    ],
)
def test_refused(text, why):
    with pytest.raises(UserError, match=why):
        Template(text).check(RECIPE)


@pytest.mark.parametrize(
    ("text", "field", "has"),
    [
        ("{optimizer.lr}", "optimizer.lr", True),
        ("{optimizer.lr}", "optimizer.momentum", False),
        ("{num_updates}", "budget.epochs", True),
        ("{accumulation}", "batch.global_batch", True),
        ("{warmup.updates}", "schedule.warmup.epochs", True),
        ("{beta2}", "optimizer.betas", True),
        ("{recipe}", "schedule.decay.kind", True),
        ("x", "seed", False),
    ],
)
def test_has_a_place_for_a_field(text, field, has):
    assert Template(text).has_place_for(field) is has


def test_words_of_can():
    assert allows(["weight_decay"], "optimizer.weight_decay")
    assert allows(["optimizer.eps"], "optimizer.eps")
    assert allows(["schedule"], "schedule.decay.kind")
    assert not allows(["warmup"], "schedule.decay.kind")
    with pytest.raises(UserError, match="unknown word 'wramup': did you mean 'warmup'"):
        check_words(["wramup"])


def test_every_derived_field_can_be_filled():
    from bigbatch.runner.template import DERIVED

    text = " ".join(f"{{{name}}}" for name in DERIVED)
    assert len(filled(text, ADAMW, device_batch=8)) == len(DERIVED)
    assert Recipe.from_toml(ADAMW.to_toml()) == ADAMW


@pytest.mark.parametrize(
    ("batch", "passes"), [(96, "2 x 48"), (100, "2 x 50"), (160, "4 x 40"), (64, "1 x 64"), (32, "1 x 32"), (97, "97 x 1")]
)
def test_passes_add_up_to_the_global_batch(batch, passes):
    recipe = RECIPE.replace({"batch.global_batch": batch})
    assert " ".join(filled("{accumulation} x {device_batch}", recipe, device_batch=64)) == passes


def test_passes_that_do_not_add_up_are_refused_where_the_script_has_its_own_batch():
    with pytest.raises(UserError, match="global_batch = 96: is no multiple of device_batch = 64, of which .* would make 128 samples"):
        Template("a {accumulation}", device_batch=64).check(RECIPE.replace({"batch.global_batch": 96}))
    Template("a {accumulation}", device_batch=64).check(RECIPE)
    Template("a {accumulation}", device_batch=64).check(RECIPE.replace({"batch.global_batch": 128}))
