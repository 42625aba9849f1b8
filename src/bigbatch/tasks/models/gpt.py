"""A decoder-only transformer over bytes."""

from torch import Tensor, nn

from bigbatch.tasks.models.transformer import Block, initialise, rotary


class GPT(nn.Module):
    """Embedding, pre-norm blocks with rotary positions, a norm and a linear head.

    Args:
        context: Most positions.
        width: Of the residual stream.
        num_blocks: Blocks.
        num_heads: Of each block; width / num_heads is even.
        vocab_size: Tokens.
        tied: Whether the head shares the embedding's weight.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, *, context: int, width: int, num_blocks: int, num_heads: int, vocab_size: int, tied: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(Block(width, num_heads, causal=True) for _ in range(num_blocks))
        self.norm, self.head = nn.RMSNorm(width, eps=1e-6), nn.Linear(width, vocab_size, bias=False)
        cos, sin = rotary(context, width // num_heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        initialise(self, num_blocks)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, positions) of any integer type to logits (n, positions, vocab_size) of the next ones."""
        x, length = self.embed(tokens.int()), tokens.size(1)
        for block in self.blocks:
            x = block(x, (self.cos[:length], self.sin[:length]))
        logits: Tensor = self.head(self.norm(x))
        return logits
