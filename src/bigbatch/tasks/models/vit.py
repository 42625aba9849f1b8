"""A small vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929): patches, learned positions, blocks, the mean of all tokens."""

import torch
from torch import Tensor, nn

from bigbatch.tasks.models.transformer import Block, initialise


class ViT(nn.Module):
    """Square images of one channel to logits.

    Args:
        patch: Side of a patch, in pixels.
        width: Of the residual stream.
        num_blocks: Blocks.
        num_heads: Of each block.
        side: Of an image, in pixels; a multiple of `patch`.
        classes: Logits.
    """

    def __init__(self, *, patch: int, width: int, num_blocks: int, num_heads: int, side: int = 28, classes: int = 10) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, width, patch, stride=patch)
        self.position_embedding = nn.Parameter(0.02 * torch.randn((side // patch) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, num_heads, causal=False) for _ in range(num_blocks))
        self.norm, self.head = nn.RMSNorm(width, eps=1e-6), nn.Linear(width, classes)
        initialise(self, num_blocks)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 1, side, side) to logits (n, classes)."""
        x = self.patch_embed(images).flatten(2).transpose(1, 2) + self.position_embedding
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits
