"""text/gpt: a decoder-only transformer over bytes."""

from torch import nn

from bigbatch.tasks.models import GPT
from bigbatch.tasks.text import CONTEXT, VOCAB_SIZE, Text


class TextGPT(Text):
    """Pre-norm, rotary positions: what large batches are used for today, small."""

    name = "text/gpt"

    def model(
        self, *, width: int = 128, num_blocks: int = 3, num_heads: int = 4, tied: bool = False, vocab_size: int = VOCAB_SIZE
    ) -> nn.Module:
        """See models/gpt.py."""
        sizes = {"width": width, "num_blocks": num_blocks, "num_heads": num_heads, "vocab_size": self.vocabulary(vocab_size)}
        return GPT(context=CONTEXT, tied=tied, **sizes)
