"""A dozen kinds of models at tiny sizes, from the configurations of Transformers and timm: no downloads."""

import importlib
import importlib.util
import sys
import types
import warnings

import pytest
import torch
from torch import nn

IDS = torch.arange(6).reshape(1, 6)
IMAGE = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
TINY = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}


def quietly(module):
    """Import a module that warns of its own accord."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def transformers(kind, config, **settings):
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    library = quietly("transformers")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(library, kind)(getattr(library, config)(**settings))


def timm(module, kind, **settings):
    """A model class of timm, whose package needs torchvision, entered by the side door: what is used here needs none."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    torch.manual_seed(0)
    return getattr(_timm_module(module), kind)(**settings)


def _timm_module(name):
    whole = importlib.util.find_spec("torchvision") is not None
    if not whole and "timm.models" not in sys.modules:
        frozen = type("FrozenBatchNorm2d", (nn.Module,), {})
        stubs = {n: types.ModuleType(n) for n in ("torchvision", "torchvision.ops", "torchvision.ops.misc")}
        stubs["torchvision.ops.misc"].FrozenBatchNorm2d = frozen
        for part in ("timm", "timm.data", "timm.models"):
            spec = importlib.util.find_spec(part)
            package = sys.modules.setdefault(part, types.ModuleType(part))
            package.__spec__, package.__path__, package.__version__ = spec, list(spec.submodule_search_locations), "1.0"
        constants = importlib.import_module("timm.data.constants")
        vars(sys.modules["timm.data"]).update({k: v for k, v in vars(constants).items() if k.isupper()})
        sys.modules.update(stubs)
        try:
            return quietly(f"timm.models.{name}")
        finally:
            for stub in stubs:
                del sys.modules[stub]
    return quietly(f"timm.models.{name}")


class LoRA(nn.Module):
    """An adapter made by hand, as in Hu et al. 2021: W x + B A x with W frozen."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(rank, base.in_features) * 0.1)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + x @ self.lora_A.T @ self.lora_B.T


def adapted():
    """BERT-MLM whose attention and head have LoRA adapters; all else is frozen."""
    model = transformers("BertForSequenceClassification", "BertConfig", **TINY).requires_grad_(False)
    attention = model.bert.encoder.layer[0].attention.self
    attention.query, attention.value, model.classifier = LoRA(attention.query), LoRA(attention.value), LoRA(model.classifier)
    return model


class NanoGPT(nn.Module):
    """The modules of nanoGPT's model.py: weights tied by assignment, no hint at which is the head."""

    def __init__(self):
        super().__init__()
        block = nn.ModuleDict({"ln_1": nn.LayerNorm(8), "c_attn": nn.Linear(8, 24), "c_proj": nn.Linear(8, 8), "mlp": nn.Linear(8, 8)})
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(12, 8), "wpe": nn.Embedding(6, 8), "h": nn.ModuleList([block])})
        self.lm_head = nn.Linear(8, 12, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, ids):
        _, t = ids.size()
        assert t <= 6
        x = self.transformer.wte(ids) + self.transformer.wpe(torch.arange(t))
        for block in self.transformer.h:
            q, k, v = block.c_attn(block.ln_1(x)).split(8, dim=2)
            x = x + block.c_proj(nn.functional.scaled_dot_product_attention(q, k, v))
            x = x + block.mlp(x).relu()
        return self.lm_head(x)


class HeadFirst(nn.Module):
    """Registers what it ends with before what it begins with, under names that say nothing; it takes steps by the data's size."""

    def __init__(self):
        super().__init__()
        self.ending = nn.Linear(6, 3)
        self.beginning = nn.Linear(4, 6)
        self.between = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))

    def forward(self, x):
        self.seen = x = self.beginning(x).relu()
        return self.ending(x + self.between(x))


class Mixture(nn.Module):
    """Stacked experts, 4 x 128 x 32, as one parameter."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(32, 4)
        self.expert_weight = nn.Parameter(torch.randn(4, 128, 32) * 0.1)
        self.head = nn.Linear(128, 5)

    def forward(self, x):
        return self.head(torch.einsum("eoi,bi,be->bo", self.expert_weight, x, self.gate(x).softmax(-1)))


class Upsampler(nn.Module):
    """A decoder with (grouped) transposed convolutions."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3, groups=2))
        self.out = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.out(self.body(x))


llama = {**TINY, "num_key_value_heads": 1}
gpt2 = {"vocab_size": 24, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
t5 = {"vocab_size": 24, "d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
moe = {**llama, "num_local_experts": 3, "num_experts_per_tok": 2, "pad_token_id": 0}
vit = {k: v for k, v in TINY.items() if k != "vocab_size"} | {"image_size": 32, "patch_size": 8}
tiny_vit = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_heads": 2, "num_classes": 5}

# kind: how to make it, its inputs, and the names of its output layer's weights
KINDS = {
    "GPT-2": (lambda: transformers("GPT2LMHeadModel", "GPT2Config", **gpt2), {"input_ids": IDS}, {"transformer.wte.weight"}),
    "BERT-MLM": (
        lambda: transformers("BertForMaskedLM", "BertConfig", **TINY),
        {"input_ids": IDS},
        {"bert.embeddings.word_embeddings.weight"},
    ),
    "BERT classifier": (
        lambda: transformers("BertForSequenceClassification", "BertConfig", **TINY),
        {"input_ids": IDS},
        {"classifier.weight"},
    ),
    "T5": (
        lambda: transformers("T5ForConditionalGeneration", "T5Config", **t5),
        {"input_ids": IDS, "decoder_input_ids": IDS},
        {"shared.weight"},
    ),
    "Llama tied": (
        lambda: transformers("LlamaForCausalLM", "LlamaConfig", **llama, tie_word_embeddings=True),
        {"input_ids": IDS},
        {"model.embed_tokens.weight"},
    ),
    "Llama": (
        lambda: transformers("LlamaForCausalLM", "LlamaConfig", **llama, tie_word_embeddings=False),
        {"input_ids": IDS},
        {"lm_head.weight"},
    ),
    "Phi-3": (lambda: transformers("Phi3ForCausalLM", "Phi3Config", **moe), {"input_ids": IDS}, {"lm_head.weight"}),
    "GPT-NeoX": (lambda: transformers("GPTNeoXForCausalLM", "GPTNeoXConfig", **TINY), {"input_ids": IDS}, {"lm_head.weight"}),
    "Mixtral": (lambda: transformers("MixtralForCausalLM", "MixtralConfig", **moe), {"input_ids": IDS}, {"lm_head.weight"}),
    "GPT-OSS": (
        lambda: transformers("GptOssForCausalLM", "GptOssConfig", **moe, head_dim=8),
        {"input_ids": IDS},
        {"lm_head.weight"},
    ),
    "ViT": (lambda: transformers("ViTForImageClassification", "ViTConfig", **vit), {"pixel_values": IMAGE}, {"classifier.weight"}),
    "LoRA": (adapted, {"input_ids": IDS}, {"classifier.base.weight", "classifier.lora_B"}),
    "timm ViT": (
        lambda: timm(
            "vision_transformer", "VisionTransformer", img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=5
        ),
        IMAGE,
        {"head.weight"},
    ),
    "timm Swin": (
        lambda: timm(
            "swin_transformer",
            "SwinTransformer",
            img_size=32,
            patch_size=4,
            window_size=4,
            embed_dim=8,
            depths=(1, 1),
            num_heads=(1, 2),
            num_classes=5,
        ),
        IMAGE,
        {"head.fc.weight"},
    ),
    "timm ConvNeXt": (
        lambda: timm("convnext", "ConvNeXt", depths=(1, 1, 1, 1), dims=(8, 12, 16, 20), num_classes=5),
        IMAGE,
        {"head.fc.weight"},
    ),
    "timm ResNet": (
        lambda: timm("resnet", "ResNet", block=_timm_module("resnet").BasicBlock, layers=(1,) * 4, channels=(8,) * 4, num_classes=5),
        IMAGE,
        {"fc.weight"},
    ),
    "timm MobileNet": (
        lambda: _timm_module("mobilenetv3").mobilenetv3_small_050(num_classes=5),
        IMAGE,
        {"classifier.weight"},
    ),
    "nanoGPT": (NanoGPT, IDS, {"transformer.wte.weight"}),
    "head first": (HeadFirst, torch.ones(2, 4), {"ending.weight"}),
    "mixture": (Mixture, torch.ones(2, 32), {"head.weight"}),
    "upsampler": (Upsampler, IMAGE, {"out.weight"}),
}


def make(kind):
    """A model of a kind, the arguments of its forward pass, and the weights of its output layer."""
    build, inputs, head = KINDS[kind]
    model = build()
    return model, (() if isinstance(inputs, dict) else (inputs,)), (inputs if isinstance(inputs, dict) else {}), head
