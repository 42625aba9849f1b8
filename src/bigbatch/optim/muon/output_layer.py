"""The layer that makes a model's outputs, by what the model says of it, by its dataflow, by names, or by order, in that order."""

import copy
import operator
import re
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F

from bigbatch.core.checks import UserError, unknown
from bigbatch.core.tensors.groups import is_norm
from bigbatch.core.tensors.owners import owned_parameters

NAMES = ("lm_head", "head", "classifier", "fc", "score", "output", "out", "readout", "logits", "decoder")
_PRODUCTS: tuple[Any, ...] = (F.linear, F.conv1d, F.conv2d, F.conv3d, operator.matmul, torch.matmul, torch.mm, torch.bmm, torch.einsum)
_PRODUCTS += (torch.addmm, torch.baddbmm, "matmul", "mm", "bmm", "addmm", "__matmul__")
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


class OutputLayer(NamedTuple):
    """Where a model's outputs are made."""

    names: list[str]  # of modules; everything in them counts. Empty: nowhere, its outputs are hidden activations
    why: str


def output_layer(model: nn.Module, head: str | None = None) -> OutputLayer:
    """Find the module, or the modules, that make a model's outputs, whether or not they are trained.

    The first that answers: `head`; `get_output_embeddings()` and what surrounds `base_model` (Transformers); `get_classifier()` (timm);
    a linear layer that shares its weight with an embedding; the layers whose output no other layer consumes, by a symbolic trace of
    `forward`, which runs on a copy of the structure; a child named `head`, `classifier`, ...; the last registered layer.

    Args:
        model: Any module.
        head: Name of the module, if it is known.

    Raises:
        UserError: If `head` is not a module of the model.
    """
    modules = dict(model.named_modules())
    if head is not None:
        if head not in modules:
            raise UserError(unknown("module", head, [name for name in modules if name]))
        return OutputLayer([head], "named as head")
    core, ways = _inner(model), (_asked, _around_base, _tied, _unconsumed, _named, _last)
    names = {id(m): name for name, m in reversed(modules.items())}
    for way in ways:
        found = way(core)
        if found is not None:
            return OutputLayer([_whole(names[id(m)], modules) for m in found[0]], found[1])
    return OutputLayer([], "no layer has a weight")


Found = tuple[list[nn.Module], str] | None


def _inner(model: nn.Module) -> nn.Module:
    """What the model wraps and can say where its outputs are made, or what DistributedDataParallel or torch.compile wraps."""
    inner = model
    while not any(hasattr(inner, name) for name in ("get_output_embeddings", "get_classifier")):
        holders = [m for m in inner.children() if any(True for _ in m.parameters())]
        if len(holders) != 1 or any(True for _ in inner.parameters(recurse=False)):
            break
        inner = holders[0]
    else:
        return inner
    while list(dict(model.named_children())) in (["module"], ["_orig_mod"]):
        model = next(model.children())
    return model


def _asked(model: nn.Module) -> Found:
    for name in ("get_output_embeddings", "get_classifier"):
        answer = getattr(model, name)() if callable(getattr(model, name, None)) else None
        parts = [m for m in (answer if isinstance(answer, tuple | list) else [answer]) if isinstance(m, nn.Module)]
        if parts:
            return [m for m in parts if any(True for _ in m.parameters())], f"by {name}()"
    return None


def _around_base(model: nn.Module) -> Found:
    """Transformers: the last layer of each child beside the base model; a base model alone makes hidden activations."""
    base = getattr(model, "base_model", None)
    if not isinstance(base, nn.Module) or not hasattr(model, "base_model_prefix"):
        return None
    if base is model:
        return [], "a base model makes hidden activations"
    beside = [child for child in model.children() if not any(m is base for m in child.modules())]
    last = [found[0][0] for child in beside if (found := _last(child)) is not None]
    return (last, f"beside {model.base_model_prefix}") if last else None


def _tied(model: nn.Module) -> Found:
    shared = [p.owners for p in owned_parameters(model) if any(isinstance(o.module, _EMBEDDINGS) for o in p.owners)]
    tied: list[nn.Module] = [o.module for owners in shared for o in owners if isinstance(o.module, nn.Linear)]
    return (tied, "shares its weight with an embedding") if tied else None


def _named(model: nn.Module) -> Found:
    children = dict(model.named_children())
    found = next((children[name] for name in NAMES if name in children and _last(children[name]) is not None), None)
    return ([found], "by its name") if found is not None else None


def _last(model: nn.Module) -> Found:
    layers = [m for name, m in model.named_modules() if _is_layer(m) and "lora_" not in name]
    return (layers[-1:], "registered last") if layers else None


def _is_layer(module: nn.Module) -> bool:
    """Whether a module itself holds a weight of two or more dimensions."""
    return not is_norm(module) and not isinstance(module, _EMBEDDINGS) and any(p.ndim > 1 for p in module.parameters(recurse=False))


def _whole(name: str, modules: dict[str, nn.Module]) -> str:
    """The layer itself, where a name is of a part that a LoRA adapter made of it."""
    name = re.sub(r"(^|\.)lora_.*", "", name)
    parent = name.rpartition(".")[0]
    adapted = parent and any(n.startswith("lora_") for m in (modules[parent],) for n in (*m._modules, *m._parameters))
    return parent if adapted or (parent and "lora" in type(modules[parent]).__name__.lower()) else name


def _unconsumed(model: nn.Module) -> Found:
    """Layers from which no path leads to another layer, in a trace of `forward`; None where it can't be traced."""
    try:
        copied, originals = _structure(model)
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            graph = _Tracer().trace(copied)
    except Exception:  # whatever a forward does when it is given no numbers
        return None
    layers: dict[fx.Node, nn.Module] = {n: m for n in graph.nodes if (m := _layer_at(n, copied)) is not None}
    followed: dict[fx.Node, bool] = {}
    for node in reversed(graph.nodes):  # users come after what they use
        followed[node] = any(user in layers or followed[user] for user in node.users)
    ends = dict.fromkeys(m for n, m in layers.items() if not followed[n] and n.users)
    consumed = {m for n, m in layers.items() if followed[n]}
    found = [originals[id(m)] for m in ends if m not in consumed]
    return (found, "no other layer consumes its output") if found and all(map(_is_layer, found)) else None


class _Tracer(fx.Tracer):
    """Goes into modules that hold others; normalisation and what holds none is one step, whatever it does inside."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or is_norm(m) or not any(True for _ in m.children())


def _layer_at(node: fx.Node, model: nn.Module) -> nn.Module | None:
    """The module whose weight a node multiplies by."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return module if any(_is_layer(m) for m in module.modules()) else None
    if node.op not in ("call_function", "call_method") or node.target not in _PRODUCTS:
        return None
    weights = [w for used in node.all_input_nodes for w in _weights_behind(used)]
    names = [str(w.target) for w in weights if _parameter(model, str(w.target)).ndim > 1]
    return model.get_submodule(names[0].rpartition(".")[0]) if names else None


def _weights_behind(node: fx.Node) -> Iterator[fx.Node]:
    """Parameters of which a node is made and of nothing else, such as `w` of `w.t()`."""
    if node.op == "get_attr":
        yield node
    elif node.op in ("call_function", "call_method") and node.all_input_nodes:
        behind = [list(_weights_behind(used)) for used in node.all_input_nodes]
        if all(behind):
            yield from (w for each in behind for w in each)


def _parameter(model: nn.Module, name: str) -> Any:
    path, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(path), attribute)


def _structure(model: nn.Module) -> tuple[nn.Module, dict[int, nn.Module]]:
    """A copy of the modules that shares the parameters, without hooks, whose forward may do to it what it likes."""
    copies: dict[int, nn.Module] = {}
    originals: dict[int, nn.Module] = {}

    def copied(module: nn.Module) -> nn.Module:
        if id(module) not in copies:
            new = copies[id(module)] = type(module).__new__(type(module))
            new.__dict__ = {name: copy.copy(v) if isinstance(v, dict | list | set) else v for name, v in vars(module).items()}
            for name in ("_forward_hooks", "_forward_pre_hooks"):
                new.__dict__[name].clear()
            new.__dict__["_buffers"] = {name: b.clone() if b is not None else None for name, b in module._buffers.items()}
            new.__dict__["_modules"] = {name: m and copied(m) for name, m in module._modules.items()}
            originals[id(new)] = module
        return copies[id(module)]

    return copied(model), originals
