"""Groups of a dozen kinds of models, checked against what their forward pass does with each parameter."""

import pytest
import torch
from tests.optim.dataflow import dataflow
from tests.optim.model_kinds import KINDS, make
from torch import nn

from bigbatch.core.tensors.matrices import as_matrices, from_matrices
from bigbatch.optim import Muon, describe_groups, muon_groups, param_groups

every_kind = pytest.mark.parametrize("kind", KINDS)
RATES = {"lr": 0.05, "adam_lr": 0.01}
ROUTERS = ("gate.weight", "router.weight")


@every_kind
def test_every_parameter_is_in_one_group_and_muon_has_the_hidden_matrices(kind):
    """The forward pass is run and followed tensor by tensor: Muon's are what multiplies activations, without the outputs' own layer."""
    model, args, kwargs, head = make(kind)
    names = {id(p): name for name, p in model.named_parameters()}
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    for groups in (muon_groups(model, **RATES), param_groups(model, weight_decay=0.1)):
        assert sorted(names[id(p)] for g in groups for p in g["params"]) == sorted(trained)
    by_muon = {names[id(p)] for g in muon_groups(model, **RATES) if g["orthogonalise"] for p in g["params"]}
    multiplied, of_outputs = dataflow(model, *args, **kwargs)
    assert of_outputs == head
    assert by_muon <= multiplied - of_outputs
    left = {name for name in multiplied - of_outputs - by_muon if name in trained}
    first_images = {name for name in left if "patch" in name or name == "stem.0.weight"}
    depthwise = {name for name in left if model.get_parameter(name).ndim == 4 and model.get_parameter(name).size(1) == 1}
    of_head = {name for name in left if name.startswith("classifier.")}  # adapters of the output layer
    assert left == first_images | depthwise | of_head


@every_kind
def test_the_table_says_what_the_groups_are(kind):
    model, *_ = make(kind)
    table = describe_groups(model)
    assert [row.name for row in table] == [name for name, _ in model.named_parameters()]
    groups = {id(p): g for g in muon_groups(model, **RATES) for p in g["params"]}
    for row, p in zip(table, model.parameters(), strict=True):
        assert row.group == ("frozen" if not p.requires_grad else "muon" if groups[id(p)]["orthogonalise"] else "adam")
        if row.group == "muon":
            assert row.matrices == tuple(as_matrices(p, groups[id(p)]["matrices"], groups[id(p)]["layout"]).shape)
        assert row.why
    decays = {id(p): g["weight_decay"] > 0 for g in param_groups(model, weight_decay=0.1) for p in g["params"]}
    for row, p in zip(describe_groups(model, kind="decay"), model.parameters(), strict=True):
        assert row.group == ("frozen" if not p.requires_grad else "weights" if decays[id(p)] else "norms_and_biases")


@every_kind
def test_muon_trains_each_kind(kind):
    model, args, kwargs, _ = make(kind)
    optimizer = Muon(muon_groups(model, **RATES))
    before = [p.detach().clone() for p in model.parameters()]
    out = model.eval()(*args, **kwargs)
    (getattr(out, "logits", out)).square().mean().backward()
    optimizer.step()
    moved = {n for (n, p), old in zip(model.named_parameters(), before, strict=True) if not torch.equal(p, old)}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad and p.grad is not None and p.grad.count_nonzero()}


DECAYS = {  # of the parameters whose names end so
    "GPT-2": {"wte.weight": True, "wpe.weight": True, "c_attn.weight": True, "c_attn.bias": False, "ln_1.weight": False},
    "T5": {"shared.weight": True, "relative_attention_bias.weight": True, "layer_norm.weight": False},
    "Llama": {"input_layernorm.weight": False, "q_proj.weight": True, "lm_head.weight": True},
    "ViT": {"cls_token": False, "position_embeddings": False, "projection.weight": True},
    "Mixtral": {"gate_up_proj": True, "down_proj": True, "gate.weight": True},
    "GPT-OSS": {"gate_up_proj": True, "gate_up_proj_bias": False, "sinks": False, "router.weight": True, "router.bias": False},
    "timm ViT": {"cls_token": False, "pos_embed": False, "qkv.weight": True},
    "timm Swin": {"relative_position_bias_table": False, "qkv.weight": True, "norm1.weight": False},
    "timm ConvNeXt": {"gamma": False, "stem.1.weight": False, "conv_dw.weight": True, "norm.weight": False},
    "timm MobileNet": {"bn1.weight": False, "conv_dw.weight": True},
    "mixture": {"expert_weight": True},
}


@pytest.mark.parametrize("kind", DECAYS)
def test_what_decays(kind):
    model, *_ = make(kind)
    decays = {id(p): g["weight_decay"] > 0 for g in param_groups(model, weight_decay=0.1) for p in g["params"]}
    for ending, want in DECAYS[kind].items():
        found = [n for n, p in model.named_parameters() if n.endswith(ending) and decays[id(p)] is not want]
        assert any(n.endswith(ending) for n, _ in model.named_parameters())
        assert found == [], f"{ending} should {'' if want else 'not '}decay"


FUSED = {  # the fused weight, which of its matrices are values (or gates), and the layer whose inputs vanish without them
    "GPT-2": ("c_attn.weight", [2], "attn.c_proj"),
    "nanoGPT": ("c_attn.weight", [2], "c_proj"),
    "GPT-NeoX": ("query_key_value.weight", [2, 5], "attention.dense"),
    "Phi-3": ("qkv_proj.weight", [3], "o_proj"),
    "timm ViT": ("qkv.weight", [2], "attn.proj"),
    "Mixtral": ("gate_up_proj", [0, 2, 4], "experts"),
}


@pytest.mark.parametrize("kind", FUSED)
def test_a_fused_weight_is_cut_where_its_layer_cuts_it(kind):
    """Without the matrices said to be the values (or the gates), nothing is left of what they are multiplied with; else there is."""
    weight, cut, reader = FUSED[kind]
    model, args, kwargs, _ = make(kind)
    p = next(p for n, p in model.named_parameters() if n.endswith(weight))
    group = next(g for g in muon_groups(model, **RATES) if any(q is p for q in g["params"]))
    for n, q in model.named_parameters():
        if n.endswith("bias"):
            nn.init.zeros_(q)
    layer = next(m for n, m in model.named_modules() if n.endswith(reader))
    seen = []
    if kind == "Mixtral":
        layer.register_forward_hook(lambda m, given, out: seen.append(out.abs().max().item()))
    else:
        layer.register_forward_pre_hook(lambda m, given: seen.append(given[0].abs().max().item()))
    whole = p.detach().clone()
    lie = group["matrices"], group["layout"]
    for number in range(len(as_matrices(whole, *lie))):
        seen.clear()
        without = as_matrices(whole, *lie).clone()
        without[cut if number in cut else number] = 0
        with torch.no_grad():
            p.copy_(from_matrices(without, p.shape, *lie))
            model.eval()(*args, **kwargs)
        assert (seen[0] == 0) is (number in cut), f"matrix {number}"
