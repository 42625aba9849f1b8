"""Which parameters are matrices that multiply hidden activations, and how each is laid out.

Decided by the module that owns the parameter. Matrices for Muon:

    nn.Linear and classes named after it           one; routers of experts too, as in Muon's paper
    a fused q, k, v or gate and up projection      one each, where the layout is known by name and sizes; else the whole is one
    convolutions, also transposed and grouped      outputs x the rest, one for each group
    RNN, LSTM, GRU                                 one for each gate
    nn.MultiheadAttention                          q, k and v of in_proj_weight
    Transformers' Conv1D                           inputs first; c_attn's q, k and v side by side
    stacked experts                                one for each expert
    LoRA factors                                   one each: A maps activations, B maps what A makes of them

Left to AdamW: norms, biases and what `bigbatch.core.tensors.groups` counts among them; embeddings, among them the patch embedding, which
is a table of input patches; bilinear forms; weights made of others (weight norm, parametrizations); matrices of a single row or column,
such as depthwise kernels, which are vectors; bare parameters of modules that are not known to multiply by them.
"""

import re
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from bigbatch.core.tensors.groups import why_norm_or_bias
from bigbatch.core.tensors.matrices import matrix_shape
from bigbatch.core.tensors.owners import Owner, Shared

GATES = {"LSTM": 4, "GRU": 3}
_PATCH = re.compile(r"patch_?embed", re.IGNORECASE)
_EXPERTS = re.compile(r"expert|moe|mixture", re.IGNORECASE)
_LINEAR_CLASS = re.compile(r"linear|dense$|router", re.IGNORECASE)
_LORA = re.compile(r"^lora_(?!embedding|magnitude)", re.IGNORECASE)
_GLU_CLASSES = ("GluMlp", "SwiGLUPacked")


class Use(NamedTuple):
    """What a module does with a parameter."""

    why: str
    matrices: int = 0  # of `layout`; 0: multiplies no hidden activations as a matrix
    layout: str = "rows"


def use_of(parameter: Shared, *, first_conv: nn.Module | None) -> Use:
    """What all owners of a parameter do with it: a stack of matrices only if it is the same one for each.

    Args:
        parameter: With its owners.
        first_conv: The model's first convolution, see `first_convolution`.
    """
    if why := why_norm_or_bias(parameter):
        return Use(why)
    uses = [_use(owner, parameter, first_conv) for owner in parameter.owners]
    use = next((u for u in uses if not u.matrices), uses[0])
    if len({u[1:] for u in uses}) > 1 and use.matrices:
        return Use("shared by modules that lay it out differently")
    if len(parameter.owners) > 1:
        use = use._replace(why=f"{use.why}; shared with {', '.join(o.name for o in parameter.owners[1:])}")
    if use.matrices and 1 in matrix_shape(parameter.tensor.shape, use.matrices, use.layout)[1:]:
        return Use(f"{use.why}: matrices of a single row or column")
    return use


def first_convolution(model: nn.Module) -> nn.Module | None:
    """The convolution that was registered first; one whose kernel is its stride is a patch embedding."""
    return next((m for m in model.modules() if isinstance(m, _ConvNd)), None)


def _use(owner: Owner, parameter: Shared, first_conv: nn.Module | None) -> Use:
    module, attribute, kind = owner.module, owner.attribute, owner.kind
    if ".parametrizations." in f".{owner.path}." or attribute in ("weight_v", "weight_orig"):
        return Use("another weight is made from it")
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) or "lora_embedding" in owner.name:
        return Use("embedding")
    if _PATCH.search(owner.path) or (module is first_conv and _cuts_patches(module)):
        return Use("patch embedding")
    if isinstance(module, nn.Linear) and attribute == "weight":
        n = _fused(owner)
        return Use("linear" if n == 1 else f"linear, {n} fused", n)
    if isinstance(module, _ConvNd) and attribute == "weight":
        return _convolution(owner)
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        mode = module.mode if isinstance(module, nn.RNNBase) else kind.removesuffix("Cell")
        return Use(f"{mode}, one for each gate", GATES.get(mode, 1) if "weight_hr" not in attribute else 1)
    if isinstance(module, nn.MultiheadAttention):
        return Use("attention, q k v", 3) if attribute == "in_proj_weight" else Use("attention", 1)
    if kind == "Conv1D" and hasattr(module, "nf"):
        n = parameter.tensor.size(1) // parameter.tensor.size(0) if attribute == "weight" and owner.path.endswith("c_attn") else 1
        return Use("linear, inputs first" if n < 2 else f"linear, inputs first, {n} fused", max(n, 1), "columns")
    if _EXPERTS.search(f"{owner.path}.{attribute} {kind}") and (experts := _experts(owner, parameter)):
        return experts
    if parameter.tensor.ndim == 2:
        if any(_LORA.match(part) for part in owner.name.split(".")) or ("lora" in kind.lower() and attribute.upper() in ("A", "B")):
            return Use("LoRA factor", 1)
        if attribute == "weight" and _LINEAR_CLASS.search(kind) and "bilinear" not in kind.lower():
            return Use(f"linear ({kind})", 1)
    return Use("bare parameter, not known to be a matrix")


def _cuts_patches(conv: nn.Module) -> bool:
    kernel, stride = getattr(conv, "kernel_size", ()), getattr(conv, "stride", ())
    return kernel == stride and max(kernel, default=1) > 1


def _convolution(owner: Owner) -> Use:
    conv: Any = owner.module
    if isinstance(conv, _ConvTransposeNd):
        return Use("transposed convolution, inputs first", conv.groups, "transposed")
    if conv.groups > 1:
        depthwise = conv.groups == conv.in_channels
        return Use("depthwise convolution" if depthwise else "convolution, one for each group", 0 if depthwise else conv.groups)
    n = _fused(owner)
    return Use("convolution" if n == 1 else f"convolution, {n} fused", n)


def _fused(owner: Owner) -> int:
    """How many matrices a linear layer or convolution holds one below the other, by the conventions of its name; 1 if unknown."""
    parent, last = owner.parent, owner.path.rpartition(".")[2]
    outputs, inputs = owner.module._parameters["weight"].shape[:2]  # type: ignore[union-attr]
    heads = _number(parent, "num_heads", "num_attention_heads", "n_head")
    if last in ("qkv", "Wqkv", "c_attn", "query_key_value"):
        widths = {inputs, *(_number(parent, name) for name in ("dim_out", "attention_dim", "attn_dim"))}
        if outputs % 3 or outputs // 3 not in widths:
            return 1
        by_head = last == "query_key_value" or getattr(parent, "head_first", False) or getattr(parent, "multi_query", None) is False
        if by_head:  # q, k and v of each head together
            return 3 * heads if heads and outputs % (3 * heads) == 0 else 1
        return 3
    if last == "qkv_proj" and (num := _number(parent, "num_key_value_heads")) and (width := _number(parent, "head_dim")):
        return outputs // (num * width) if outputs % (num * width) == 0 else 1  # of the height of k and v, which is q's of one group
    gated = last == "gate_up_proj" or (last == "fc1" and type(parent).__name__ in _GLU_CLASSES)
    return 2 if gated and outputs % 2 == 0 else 1


def _experts(owner: Owner, parameter: Shared) -> Use | None:
    module, shape = owner.module, parameter.tensor.shape
    if len(shape) == 2:
        num = _number(module, "num_experts", "moe_num_experts")
        return Use("experts, one matrix each", num) if num > 1 and shape[0] % num == 0 and shape[0] > num else None
    if len(shape) != 3 or shape[0] < 2:
        return None
    fused = "gate_up" in owner.attribute
    hidden = _number(module, "hidden_size", "hidden_dim")
    inputs_first = getattr(module, "is_transposed", fused and shape[1] == hidden != shape[2])
    n = 2 if fused and getattr(module, "is_concatenated", True) and shape[2 if inputs_first else 1] % 2 == 0 else 1
    text = "experts, one matrix each" if n == 1 else "experts, gate and up of each"
    return Use(text, n, "columns" if inputs_first else "stack")


def _number(module: nn.Module | None, *names: str) -> int:
    for name in names:
        for holder in (module, getattr(module, "config", None)):
            value = getattr(holder, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return 0
