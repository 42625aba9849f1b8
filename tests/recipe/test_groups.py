import pytest

from bigbatch import Recipe
from bigbatch.core.checks import RecipeError

SGD = Recipe.named("digits/mlp")
MUON = SGD.replace({"optimizer.name": "muon", "optimizer.adam_lr": 0.01})
TOML = """
[optimizer.groups]
"*.head.weight" = "adam"
"blocks.[01].*" = "muon"
"""


def test_patterns_are_read_and_round_trip():
    start, _, rest = MUON.to_toml().partition("\n[schedule")
    recipe = Recipe.from_toml(f"{start}{TOML}\n[schedule{rest}")
    assert recipe.optimizer.groups == {"*.head.weight": "adam", "blocks.[01].*": "muon"}
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert MUON.to_dict()["optimizer"].get("groups") is None


def test_a_pattern_is_one_field_dots_and_all():
    recipe = MUON.replace({"optimizer.groups.*.head.weight": "adam"}).replace({"optimizer.groups.1.weight": "muon"})
    assert recipe.optimizer.groups == {"*.head.weight": "adam", "1.weight": "muon"}
    assert recipe.get("optimizer.groups.*.head.weight") == "adam"
    assert recipe.replace({"optimizer.groups.1.weight": None}).optimizer.groups == {"*.head.weight": "adam"}
    assert recipe.differences(MUON)[-1] == "optimizer.groups.1.weight: muon here, absent there"


def test_another_optimizer_has_other_groups():
    muon = MUON.replace({"optimizer.groups.1.weight": "adam"})
    assert muon.replace({"optimizer.name": "sgd"}).optimizer.groups is None
    plain = SGD.replace({"optimizer.groups.1.weight": "norms_and_biases"})
    assert plain.replace({"optimizer.name": "lars"}).optimizer.groups == {"1.weight": "norms_and_biases"}
    assert plain.replace({"optimizer.name": "muon", "optimizer.adam_lr": 0.1}).optimizer.groups is None


@pytest.mark.parametrize(
    ("recipe", "value", "message"),
    [
        (MUON, "admm", r"optimizer.groups.\*.weight = 'admm': input should be 'muon' or 'adam'"),
        (MUON, "weights", "input should be 'muon' or 'adam'"),
        (SGD, "muon", "input should be 'weights' or 'norms_and_biases'"),
    ],
)
def test_refuses_other_groups(recipe, value, message):
    with pytest.raises(RecipeError, match=message):
        recipe.replace({"optimizer.groups.*.weight": value})
