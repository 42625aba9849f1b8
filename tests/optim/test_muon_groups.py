"""Kinds of parameters one by one, the output layer, overrides and the table."""

import copy

import pytest
import torch
from tests.optim.model_kinds import HeadFirst, LoRA, Mixture, NanoGPT
from torch import nn

from bigbatch.core.checks import UserError
from bigbatch.core.tensors.matrices import as_matrices
from bigbatch.optim import Muon, describe_groups, muon_groups, param_groups
from bigbatch.optim.muon.newton_schulz import matched_rms, orthogonalise

RATES = {"lr": 0.05, "adam_lr": 0.01}


def groups_of(model, **settings):
    return {row.name: row.group for row in describe_groups(model, **settings)}


class Bare(nn.Module):
    def __init__(self, **shapes):
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))


class Net(nn.Module):
    """Modules under given names; no forward pass."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


@pytest.mark.parametrize(
    ("layer", "want"),
    [
        (nn.Linear(4, 6), {"weight": "1 of 6x4"}),
        (nn.Linear(4, 1), {"weight": "adam"}),
        (nn.Conv2d(4, 6, 3), {"weight": "1 of 6x36"}),
        (nn.Conv2d(4, 4, 3, groups=4), {"weight": "adam"}),
        (nn.Conv2d(4, 8, 3, groups=4), {"weight": "adam"}),
        (nn.Conv2d(4, 6, 3, groups=2), {"weight": "2 of 3x18"}),
        (nn.ConvTranspose2d(4, 6, 3), {"weight": "1 of 6x36"}),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), {"weight": "2 of 3x18"}),
        (nn.ConvTranspose2d(4, 4, 3, groups=4), {"weight": "adam"}),
        (nn.GRU(4, 3, bias=False), {"weight_ih_l0": "3 of 3x4", "weight_hh_l0": "3 of 3x3"}),
        (nn.LSTM(4, 6, proj_size=2, bias=False), {"weight_ih_l0": "4 of 6x4", "weight_hh_l0": "4 of 6x2", "weight_hr_l0": "1 of 2x6"}),
        (nn.MultiheadAttention(4, 2, bias=False), {"in_proj_weight": "3 of 4x4", "out_proj.weight": "1 of 4x4"}),
        (nn.MultiheadAttention(4, 2, bias=False, kdim=6), {"q_proj_weight": "1 of 4x4", "k_proj_weight": "1 of 4x6"}),
        (nn.Bilinear(3, 4, 5, bias=False), {"weight": "adam"}),
        (nn.Embedding(5, 4), {"weight": "adam"}),
        (nn.LayerNorm([3, 4]), {"weight": "adam"}),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), {"parametrizations.weight.original1": "adam"}),
        (Bare(cls_token=(1, 1, 8), pos_embed=(1, 5, 8), table=(5, 8)), {"cls_token": "adam", "pos_embed": "adam", "table": "adam"}),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_each_kind(layer, want):
    table = {row.name: row for row in describe_groups(Net(hidden=layer, head=nn.Linear(7, 2)))}
    got = {n: "{} of {}x{}".format(*r.matrices) if (r := table[f"hidden.{n}"]).matrices else r.group for n in want}
    assert got == want


def test_a_patch_embedding_is_an_embedding_and_a_later_one_is_a_convolution():
    net = Net(stem=nn.Conv2d(3, 8, 4, stride=4), down=nn.Conv2d(8, 8, 2, stride=2), head=nn.Linear(8, 2))
    assert groups_of(net) == {
        "stem.weight": "adam",
        "stem.bias": "adam",
        "down.weight": "muon",
        "down.bias": "adam",
        "head.weight": "adam",
        "head.bias": "adam",
    }


@pytest.mark.parametrize("head", ["ending", None])
def test_the_output_layer_is_what_nothing_else_consumes(head):
    model = HeadFirst()
    before, random = set(vars(model)), torch.get_rng_state()
    matrices = {name for name, group in groups_of(model, head=head).items() if group == "muon"}
    assert matrices == {"beginning.weight", "between.0.weight", "between.2.weight"}
    assert set(vars(model)) == before, "looking at the model changed it"
    assert torch.equal(torch.get_rng_state(), random)


def test_a_frozen_head_stays_the_head():
    model = HeadFirst()
    model.ending.requires_grad_(False)
    assert {n for n, g in groups_of(model).items() if g == "muon"} == {"beginning.weight", "between.0.weight", "between.2.weight"}
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2).requires_grad_(False))
    assert [g["orthogonalise"] for g in muon_groups(plain, **RATES)] == [True, False]


def test_adapters_of_hidden_layers_are_muons_and_those_of_the_head_are_not():
    model = nn.Sequential(LoRA(nn.Linear(4, 6)), nn.ReLU(), LoRA(nn.Linear(6, 3)))
    assert {n for n, g in groups_of(model).items() if g == "muon"} == {"0.lora_A", "0.lora_B"}


def test_tied_weights_are_an_embedding_and_the_last_hidden_matrix_stays():
    got = groups_of(NanoGPT())
    assert got["transformer.wte.weight"] == "adam"
    assert got["transformer.h.0.mlp.weight"] == got["transformer.h.0.c_attn.weight"] == "muon"


def test_several_heads_are_all_output_layers():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.value, self.policy, self.body = nn.Linear(4, 1), nn.Linear(4, 3), nn.Linear(4, 4)

        def forward(self, x):
            x = self.body(x).relu()
            return {"value": self.value(x), "policy": self.policy(x)}

    assert {n for n, g in groups_of(TwoHeads()).items() if g == "muon"} == {"body.weight"}


def test_a_model_that_can_t_be_traced_is_read_by_names_then_by_order():
    class Untraceable(nn.Module):
        def __init__(self, first, last):
            super().__init__()
            self.add_module(first, nn.Linear(4, 4))
            self.add_module(last, nn.Linear(4, 4))

        def forward(self, x):
            return x if x.sum() > 0 else -x

    assert groups_of(Untraceable("classifier", "body"))["body.weight"] == "muon"
    assert groups_of(Untraceable("one", "two"))["one.weight"] == "muon"
    assert "registered last" in str(describe_groups(Untraceable("one", "two")))
    assert groups_of(Untraceable("one", "two"), head="one") == {
        "one.weight": "adam",
        "one.bias": "adam",
        "two.weight": "muon",
        "two.bias": "adam",
    }


def test_wrappers_are_seen_through():
    assert groups_of(Net(module=HeadFirst()))["module.between.2.weight"] == "muon"
    assert groups_of(Net(module=HeadFirst()))["module.ending.weight"] == "adam"


@pytest.mark.parametrize("layout", ["columns", "stack", "transposed"])
def test_a_step_in_each_layout_is_orthogonal_matrix_by_matrix(layout):
    """One step from zero momentum is 0.2 sqrt(max(A, B)) times each matrix of the gradient, orthogonalised alone."""
    shapes = {"columns": (4, 9), "stack": (2, 6, 5), "transposed": (6, 4, 2)}
    n = {"columns": 3, "stack": 2, "transposed": 3}[layout]
    w = torch.zeros(shapes[layout], dtype=torch.float64, requires_grad=True)
    w.grad = torch.randn(shapes[layout], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    Muon([w], lr=1.0, matrices=n, layout=layout, nesterov=False).step()
    grads, steps = as_matrices(w.grad, n, layout), as_matrices(-w.detach(), n, layout)
    for grad, step in zip(grads, steps, strict=True):
        torch.testing.assert_close(step, matched_rms(*grad.shape) * orthogonalise(grad))


def test_experts_are_orthogonalised_one_by_one():
    model = Mixture()
    expert = next(g for g in muon_groups(model, **RATES) if g["params"][0] is model.expert_weight)
    assert (expert["matrices"], expert["layout"]) == (1, "stack")
    w = model.expert_weight
    w.grad = torch.randn_like(w)
    w.grad[0] *= 1e-6  # an expert with a tiny gradient moves as far as the others
    before = w.detach().clone()
    Muon([expert]).step()
    moved = (w.detach() - before).flatten(1).norm(dim=1)
    assert moved.max() / moved.min() < 2


def test_overrides_by_name():
    model = HeadFirst()
    assert groups_of(model, overrides={"between.*": "adam", "*.2.weight": "muon"}) == {
        **groups_of(model),
        "between.0.weight": "adam",
    }
    groups = muon_groups(model, **RATES, overrides={"beginning.weight": {"matrices": 2, "lr": 0.7}, "*.ending.weight": "muon"})
    assert [(g["lr"], g["matrices"], len(g["params"])) for g in groups if g["orthogonalise"]] == [(0.05, 1, 3), (0.7, 2, 1)]
    assert "override" in {row.why for row in describe_groups(model, overrides={"*.ending.weight": "muon"})}
    plain = param_groups(model, weight_decay=0.1, overrides={"*.0.weight": "norms_and_biases", "ending.bias": {"weight_decay": 0.5}})
    assert [(g["weight_decay"], len(g["params"])) for g in plain] == [(0.1, 3), (0.0, 4), (0.5, 1)]
    assert Muon(groups).param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"*.begining.weight": "adam"}, r"pattern '\*.begining.weight': matches no parameter; near it are beginning.weight"),
        ({"between": "adam"}, "near it are between.0.weight, between.0.bias, between.2.weight"),
        ({"*.weight": "admm"}, "override '\\*.weight': unknown group 'admm': did you mean 'adam'"),
        ({"ending.bias": "muon"}, "does not fit shape"),
        ({"beginning.weight": {"matrices": 5}}, "matrices = 5: must divide the 6 rows"),
    ],
)
def test_bad_overrides(overrides, message):
    with pytest.raises(UserError, match=message):
        muon_groups(HeadFirst(), **RATES, overrides=overrides)


def test_groups_survive_a_copy_of_the_model():
    model = NanoGPT()
    assert describe_groups(copy.deepcopy(model)) == describe_groups(model)
    assert len(str(describe_groups(model)).splitlines()) == 1 + len(list(model.parameters()))
    with pytest.raises(UserError, match="unknown kind 'moun': did you mean 'muon'"):
        describe_groups(model, kind="moun")
