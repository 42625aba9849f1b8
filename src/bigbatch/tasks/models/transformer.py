"""Pre-norm transformer blocks: root-mean-square norms, rotary positions, scaled dot-product attention, GELU."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention without biases.

    Args:
        width: Of the residual stream; a multiple of `num_heads`.
        num_heads: Each of width / num_heads.
        causal: Whether a position sees only itself and those before it; positions are rotary (Su et al. 2021, arXiv:2104.09864) then.
    """

    def __init__(self, width: int, num_heads: int, *, causal: bool) -> None:
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """(n, positions, width) to the same; `rotation` is that of `rotary`."""
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        if rotation is not None:
            q, k = rotated(q, *rotation), rotated(k, *rotation)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out: Tensor = self.project(mixed.transpose(1, 2).reshape(n, length, width))
        return out


class Block(nn.Module):
    """Attention, then a perceptron of four times the width, each added to its input."""

    def __init__(self, width: int, num_heads: int, *, causal: bool) -> None:
        super().__init__()
        self.norm1, self.attention = nn.RMSNorm(width, eps=1e-6), Attention(width, num_heads, causal=causal)
        self.norm2, self.expand, self.contract = nn.RMSNorm(width, eps=1e-6), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(n, positions, width) to the same."""
        x = x + self.attention(self.norm1(x), rotation)
        out: Tensor = x + self.contract(F.gelu(self.expand(self.norm2(x))))
        return out


def rotary(length: int, head_width: int, *, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles by which positions turn, each (length, head_width / 2)."""
    angles = torch.outer(torch.arange(length).float(), base ** (-torch.arange(0, head_width, 2).float() / head_width))
    return angles.cos(), angles.sin()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys (..., positions, head_width), each pair of components turned by its position's angle."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


@torch.no_grad()
def initialise(model: nn.Module, num_blocks: int) -> None:
    """Linear maps normal with variance 1 / inputs, those that end a branch divided by sqrt(2 blocks); embeddings 0.02; biases zero."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            ends = name.endswith(("project", "contract"))
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features * (2 * num_blocks if ends else 1)))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
