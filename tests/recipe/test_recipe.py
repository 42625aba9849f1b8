import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch import Recipe
from bigbatch.core.checks import RecipeError
from bigbatch.recipe import recipe_names

MLP = Recipe.named("fashion_mnist/mlp")
RESNET = Recipe.named("fashion_mnist/resnet8")


@pytest.mark.parametrize("name", recipe_names())
def test_named_recipes_round_trip_through_toml(name):
    recipe = Recipe.named(name)
    assert recipe.task in (name, name.removesuffix(f"-{recipe.optimizer.name}"))
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@given(
    lr=st.floats(1e-9, 1e3),
    epochs=st.floats(0.01, 1e3),
    warmup=st.sampled_from(["none", "gradual", "constant"]),
    decay=st.sampled_from(["constant", "step", "polynomial", "cosine", "linear"]),
    optimizer=st.sampled_from(["sgd", "adam", "adamw"]),
    batch=st.integers(1, 55_000),
)
def test_any_recipe_round_trips_unchanged(lr, epochs, warmup, decay, optimizer, batch):
    changes = {"optimizer.name": optimizer, "optimizer.lr": lr, "budget.epochs": epochs, "batch.global_batch": batch}
    changes |= {"schedule.warmup.kind": warmup, "schedule.decay.kind": decay}
    if warmup != "none":
        changes["schedule.warmup.epochs"] = epochs
    if warmup == "constant":
        changes["schedule.warmup.factor"] = 0.1
    if decay == "step":
        changes["schedule.decay.milestones"] = [1.5, 3]
    recipe = MLP.replace(changes)
    again = Recipe.from_toml(recipe.to_toml())
    assert again == recipe
    assert again.to_toml() == recipe.to_toml()


def test_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        MLP.seed = 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.learning_rate": 1}, "unknown field 'optimizer.learning_rate': .*known: lr, weight_decay"),
        ({"optimizer.momentun": 0.5}, "unknown field 'optimizer.momentun': did you mean 'momentum'"),
        ({"epochs": 1}, "unknown field 'epochs': known: task, num_train_samples"),
        ({"optimizer.lr": 0}, "optimizer.lr = 0: input should be greater than 0"),
        ({"optimizer.lr": float("nan")}, "optimizer.lr = nan: input should be a finite number"),
        ({"optimizer.weight_decay": -1e-4}, "optimizer.weight_decay = -0.0001: input should be greater than or equal to 0"),
        ({"optimizer.momentum": 1.0}, "optimizer.momentum = 1.0: input should be less than 1"),
        ({"optimizer.momentum": 0.0}, "nesterov = true needs momentum > 0"),
        ({"optimizer.name": "sdg"}, "optimizer.name = 'sdg': must be one of sgd, adam, adamw"),
        ({"schedule.decay.kind": "cosin"}, "schedule.decay.kind = 'cosin': must be one of constant, step"),
        ({"schedule.decay.kind": "step"}, "schedule.decay.milestones: is missing"),
        ({"schedule.decay.kind": "step", "schedule.decay.milestones": [3, 2]}, "must ascend"),
        ({"schedule.warmup.epochs": -1}, "schedule.warmup.epochs = -1: input should be greater than or equal to 0"),
        ({"batch.global_batch": 0}, "batch.global_batch = 0: input should be greater than 0"),
        ({"batch.global_batch": -128}, "batch.global_batch = -128: input should be greater than 0"),
        ({"batch.global_batch": 55_001}, "batch.global_batch = 55,001: is larger than the training set of 55,000 samples; choose"),
        ({"batch.ghost_batch": 0}, "batch.ghost_batch = 0: must be a whole number above zero, or 'global'"),
        ({"batch.ghost_batch": 1}, "batch.ghost_batch = 1: must be 2 or more, since a group of one sample has no variance"),
        ({"batch.micro_batch": "big"}, "batch.micro_batch = 'big': must be a whole number above zero, or 'auto'"),
        ({"batch.ghost_batch": 256}, "batch.ghost_batch = 256: is larger than global_batch = 128"),
        ({"batch.ghost_batch": 64, "batch.micro_batch": 100}, "batch.micro_batch = 100: must be a multiple of ghost_batch = 64"),
        ({"batch.ghost_batch": "global", "batch.micro_batch": 64}, 'batch norm over the "global" batch needs it in one forward pass'),
        ({"budget.updates": 10}, "give exactly one of epochs, samples, updates, tokens; got epochs and updates"),
        ({"budget.epochs": None}, "give exactly one of epochs, samples, updates, tokens; got none"),
        ({"budget.epochs": 1e300}, "budget.epochs = 1e\\+300: input should be less than or equal to 1000000"),
        ({"budget.epochs": 0}, "budget.epochs = 0: input should be greater than 0"),
        ({"num_train_samples": None}, "num_train_samples: is missing"),
        ({"seed": -1}, "seed = -1: input should be greater than or equal to 0"),
        ({"precision": "float16"}, "precision = 'float16': input should be 'float32', 'bfloat16' or 'float64'"),
        ({"comm": {"kind": "gosip"}}, "comm.kind = 'gosip': must be one of all_reduce, local_sgd, diloco, "),
        ({"comm": {"kind": "gossip", "topology": "rng"}}, "comm.topology = 'rng': input should be 'ring', 'torus'"),
        ({"comm.topology": "ring"}, "unknown field 'comm.topology'"),
        ({"comm": {"kind": "gossip", "method": "decentlam"}}, "with optimizer.nesterov = true: is made for heavy-ball momentum; set"),
        ({"comm": {"kind": "gossip", "method": "decentlam"}, "optimizer.name": "adam"}, 'with optimizer.name = "adam": is made for'),
        (
            {"comm": {"kind": "gossip", "method": "decentlam", "topology": "exponential"}, "optimizer.nesterov": False},
            'comm.topology = "exponential": is directed, and DecentLaM needs symmetric weights',
        ),
        ({"batch.rule": {"kind": "ramp", "largest": 512}}, "batch.rule.over_samples: is missing"),
        ({"batch.rule": {"kind": "late", "after": 0.5}}, "batch.rule.largest: is missing"),
        ({"batch.rule": {"kind": "late", "after": 1.0, "largest": 512}}, "batch.rule.after = 1.0: input should be less than 1"),
        (
            {"batch.rule": {"kind": "ramp", "largest": 60_000, "over_samples": 9}},
            "batch.rule: a batch of 60,000 is larger than the training set of 55,000 samples; choose one that fits into it",
        ),
        (
            {"batch.rule": {"kind": "late", "after": 0.5, "largest": 64}},
            "batch.rule: a batch of 64 is smaller than global_batch = 128, at which the run begins; give a larger one",
        ),
        (
            {"batch.rule": {"kind": "schedule", "steps": [[9, 256], [99, 300]]}, "batch.ghost_batch": 64},
            "batch.rule: a batch of 300 is not a multiple of ghost_batch = 64: one normalisation group .* take 256",
        ),
        ({"batch.rule": {"kind": "schedule", "steps": [[99, 256], [99, 512]]}}, r"batch.rule: steps begin at \[99, 99\]: must be"),
        ({"batch.rule": {"kind": "schedule", "steps": []}}, r"batch.rule.steps = \[\]: tuple should have at least 1 item"),
        ({"batch.rule": {"kind": "schedule", "steps": [[9, 0]]}}, r"batch.rule.steps.0.1 = 0: input should be greater than 0"),
        ({"batch.rule": {"kind": "schedule", "steps": [[9, 256]], "largest": 512}}, "unknown field 'batch.rule.largest'"),
        ({"comm.label_skew": 1.5}, "comm.label_skew = 1.5: input should be less than or equal to 1"),
        ({"comm.label_skew": 0.5, "batch.rule": {"kind": "norm_test"}}, "comm.label_skew = 0.5: each worker has samples of its own"),
        ({"seed.deeper": 1}, "seed.deeper: 'seed' is a value, not a section"),
        ({"batch.rule": {"kind": "increase_batch", "largest": 64}}, "batch.rule.largest = 64: must be at least global_batch = 128; give a"),
        ({"batch.rule": {"kind": "noise_scale", "largest": 64}}, "batch.rule.largest = 64: must be at least global_batch = 128; give a"),
        (
            {"batch.rule": {"kind": "noise_scale", "smallest": 96, "largest": 64}},
            "batch.rule.largest = 64: must be at least batch.rule.smallest = 96; give a larger one",
        ),
        ({"schedule.decay": "cosine"}, r'^schedule.decay = .cosine.: must be a section, such as schedule.decay = \{ kind = "cosine" \}$'),
        ({"optimizer": "best"}, r'^optimizer = .best.: must be a section, such as optimizer = \{ name = "sgd" \}$'),
        ({"batch": 32}, r"^batch = 32: must be a section, such as batch.global_batch = ...$"),
        ({"optimizer.name": "adamw", "optimizer.betas": 0.9}, r"^optimizer.betas = 0.9: must be a list, such as \[0.9, 0.999\]$"),
        ({"curvature.every_update": 3}, "unknown field 'curvature.every_update': did you mean 'every_updates'"),
        ({"curvature": {"every_updates": 3, "trace": -1}}, "^curvature.trace = -1: must be a relative error above zero, or false$"),
        ({"model.x": [1]}, r"^model.x = \[1\]: must be a number, a text, true or false$"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(RecipeError, match=message):
        MLP.replace(changes)


ASYNCHRONOUS = {"comm.kind": "parameter_server", "comm.mode": "asynchronous"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**ASYNCHRONOUS, "comm.staleness_bound": 0}, r'comm: staleness_bound = 0: no gradient could ever be late, .*mode = "synchronous"'),
        ({**ASYNCHRONOUS, "comm.staleness_bound": -1}, "comm.staleness_bound = -1: input should be greater than or equal to 0"),
        ({**ASYNCHRONOUS, "comm.period": 0}, "comm.period = 0: input should be greater than 0"),
        ({**ASYNCHRONOUS, "comm.outer_lr": 0}, "comm.outer_lr = 0: input should be greater than 0"),
        ({**ASYNCHRONOUS, "comm.outer_momentum": 1}, "comm.outer_momentum = 1: input should be less than 1"),
        (
            {**ASYNCHRONOUS, "comm.period": 8, "comm.reduction": "sum"},
            'comm: reduction = "sum" with an outer optimizer: its rate is of the mean of where workers went; set "mean"',
        ),
        ({"comm.kind": "parameter_server", "comm.staleness_bound": 4}, "comm: staleness_bound = 4: nothing is stale in synchronous"),
        ({"comm.kind": "parameter_server", "comm.damping": "inverse"}, "comm: damping = 'inverse': nothing is stale"),
        (
            {"comm.kind": "parameter_server", "comm.staleness": 4},
            "unknown field 'comm.staleness': did you mean 'staleness_bound'",
        ),
        ({"comm.kind": "parameter_server", "comm.servers": 0}, "comm.servers = 0: input should be greater than 0"),
    ],
)
def test_refuses_an_impossible_parameter_server(changes, message):
    with pytest.raises(RecipeError, match=message):
        MLP.replace(changes)


@pytest.mark.parametrize("changes", [{"comm.kind": "parameter_server", "comm.backup_workers": 1}, ASYNCHRONOUS])
def test_a_parameter_server_round_trips(changes):
    recipe = MLP.replace(changes)
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert recipe.replace({"comm.kind": "all_reduce"}).comm == MLP.comm


RANKS = {"adversarial": {"eps": 0.1, "makers": "ranks"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adversarial": {"eps": 1.5}}, "adversarial: eps = 1.5: must be above zero and at most 1, all of the data's range"),
        ({"adversarial": {"eps": 0.0}}, "adversarial: eps = 0: must be above zero"),
        (
            {"adversarial": {"eps": 0.1, "tau": -1}},
            "adversarial: tau = -1: weights of updates to come are not known; set 1, or 0",
        ),
        ({"adversarial": {"tau": 1}}, "adversarial.eps: is missing"),
        ({"adversarial": {"eps": 0.1, "taw": 1}}, "unknown field 'adversarial.taw': did you mean 'tau'"),
        ({"adversarial": {"eps": 0.1, "share": 0}}, "adversarial.share = 0: input should be greater than 0"),
        (
            {"adversarial": {"eps": 0.1, "full_until": 0.8, "off_at": 0.5}},
            "adversarial: off_at = 0.5: must not come before full_until",
        ),
        ({"adversarial": {"eps": 0.1, "low": 0.0}}, "low = 0.0, high = None: must be given together, the lower first"),
        ({"adversarial": {"eps": 0.1, "low": 1.0, "high": 0.0}}, "low = 1.0, high = 0.0: must be given together, the lower first"),
        ({**RANKS, "adversarial.tau": 0}, 'makers = "ranks" with tau = 0: examples from the newest weights are waited for'),
        ({**RANKS, "comm.compression": {"kind": "top_k"}}, 'comm.compression with adversarial.makers = "ranks": compresses among all'),
        (
            {**RANKS, "comm": {"kind": "gossip"}},
            r'\[adversarial\] with comm.kind = "gossip": examples are made from the weights',
        ),
        ({**RANKS, "comm": {"kind": "parameter_server"}}, r'\[adversarial\] with comm.kind = "parameter_server"'),
        ({**RANKS, "comm": {"kind": "local_sgd"}}, r'\[adversarial\] with comm.kind = "local_sgd"'),
        ({**RANKS, "comm": {"kind": "fully_shard"}}, r'\[adversarial\] with comm.kind = "fully_shard"'),
        ({**RANKS, "batch.rule": {"kind": "norm_test"}}, r'batch.rule.kind = "norm_test" with \[adversarial\]'),
        ({"augmentation": {"padding": -1}}, "augmentation.padding = -1: input should be greater than or equal to 0"),
    ],
)
def test_refuses_impossible_samples(changes, message):
    with pytest.raises(RecipeError, match=message):
        MLP.replace(changes)


def test_adversarial_examples_round_trip_and_go():
    recipe = MLP.replace({**RANKS, "augmentation": {"padding": 2}})
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert recipe.replace({"adversarial.tau": 3}).adversarial.tau == 3
    assert recipe.replace({"adversarial": None, "augmentation": None}) == MLP


@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "schedule", "steps": [[1000, 256], [3000, 512]], "lr": "linear"},
        {"kind": "ramp", "over_samples": 1000, "largest": 512},
        {"kind": "late", "after": 0.75, "largest": 512},
        {"kind": "seesaw", "largest": 512},
    ],
    ids=lambda rule: rule["kind"],
)
def test_a_schedule_of_the_batch_round_trips(rule):
    recipe = MLP.replace({"batch.rule": rule})
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert recipe.replace({f"batch.rule.{field}": value for field, value in rule.items()}) == recipe


def test_refuses_when_built_directly():
    with pytest.raises(RecipeError, match="optimizer: is missing; .*batch: is missing"):
        Recipe(num_train_samples=10, budget={"epochs": 1})


def test_a_new_kind_drops_the_old_kinds_fields():
    assert MLP.replace({"optimizer.name": "adamw"}).optimizer.lr == MLP.optimizer.lr
    stepped = MLP.replace({"schedule.decay.kind": "step", "schedule.decay.milestones": [3]})
    assert stepped.replace({"schedule.decay.kind": "constant"}).get("schedule.decay") == {"kind": "constant"}


@pytest.mark.parametrize(
    ("budget", "samples", "updates"),
    [({"epochs": 10}, 550_000, 4297), ({"samples": 1000}, 1000, 8), ({"updates": 8}, 1024, 8), ({"epochs": 1e-9}, 1, 1)],
)
def test_budgets(budget, samples, updates):
    recipe = MLP.replace({"budget": budget})
    assert (recipe.total_samples, recipe.num_updates) == (samples, updates)


def test_differences_name_the_fields():
    other = MLP.replace({"optimizer.lr": 0.5, "optimizer.clip_norm": 1.0})
    assert MLP.differences(other) == ["optimizer.clip_norm: absent here, 1.0 there", f"optimizer.lr: {MLP.optimizer.lr} here, 0.5 there"]
    assert MLP.differences(MLP) == []


def test_files(tmp_path):
    with pytest.raises(RecipeError, match="can't be read"):
        Recipe.load(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("lr = = 3")
    with pytest.raises(RecipeError, match=r"bad.toml: not TOML: .*line 1"):
        Recipe.load(tmp_path / "bad.toml")
    with pytest.raises(RecipeError, match="unknown recipe 'digits/mpl': did you mean 'digits/mlp'"):
        Recipe.named("digits/mpl")


FIELDS = [
    "task", "num_train_samples", "seed", "precision", "optimizer", "optimizer.name", "optimizer.lr", "optimizer.nesterov", "schedule",
    "schedule.warmup", "schedule.warmup.kind", "schedule.warmup.epochs", "schedule.decay", "schedule.decay.kind", "batch",
    "batch.global_batch", "batch.ghost_batch", "batch.micro_batch", "model", "model.width", "budget", "budget.epochs", "budget.updates",
    "nothing", "schedule.nothing", "batch.nothing.deeper",
]  # fmt: skip
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["kind", "name", "epochs", "x"]), st.one_of(st.integers(), st.text(max_size=5)), max_size=2),
)  # fmt: skip


@given(changes=st.dictionaries(st.sampled_from(FIELDS), JUNK, max_size=4))
def test_whatever_is_given_it_is_a_recipe_or_a_readable_error(changes):
    try:
        recipe = RESNET.replace(changes)
    except RecipeError as error:
        message = str(error)
    else:
        message = "fine"
        assert Recipe.from_toml(recipe.to_toml()) == recipe
        assert recipe.num_updates >= 1
    assert message
    assert "pydantic" not in message


def test_gossip_knows_every_topology():
    from typing import get_args

    from bigbatch.comm.gossip.section import GossipSection
    from bigbatch.comm.gossip.topology import TOPOLOGIES

    assert list(get_args(GossipSection.model_fields["topology"].annotation)) == list(TOPOLOGIES)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"seed = 1\n\xff", r"is damaged: not UTF-8 \(byte 0xff in line 2\)"),
        (b"seed = " + b"9" * 5000, "not TOML: a number of more than 4,300 digits"),
        (b"seed = " + b"[" * 5000, "not TOML: nested deeper than 100 levels"),
        (b"a." * 5000 + b"a = 1", "nested deeper than 100 levels"),
        (b"seed = 18446744073709551616", "a whole number of more than 64 bits"),
        (b"self = 1", ".*unknown field 'self'"),
    ],
)
@pytest.mark.parametrize("saved", [False, True])
def test_a_file_that_is_damaged(tmp_path, content, why, saved):
    (tmp_path / "r.toml").write_bytes(content)
    with pytest.raises(RecipeError, match=rf"recipe .*r.toml: {why}") as error:
        Recipe.load(tmp_path / "r.toml", saved=saved)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["3", "[]", "{ kind = [] }", "'x'"])
@pytest.mark.parametrize("section", ["warmup", "decay"])
def test_a_saved_schedule_of_another_type(section, value):
    text = RESNET.to_toml().replace('combine = "sequential"\n', "")
    head, tail = text.split("[schedule", 1)
    with pytest.raises(RecipeError):
        Recipe.from_saved(f"{head}[schedule]\n{section} = {value}\n[{tail.split(chr(10) + '[', 2)[-1]}")


@pytest.mark.parametrize("field", ["seed", "budget.updates", "batch.micro_batch"])
def test_numbers_that_no_64_bits_hold(field):
    with pytest.raises(RecipeError, match=f"{field}.* = 9223372036854775808"):
        RESNET.replace({"budget.epochs": None, "budget.updates": 3, field: 2**63})
