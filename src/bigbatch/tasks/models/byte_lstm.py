"""A language model of LSTM layers: the set-up of LEGW's Penn Treebank experiment (You et al. 2019, arXiv:1901.08256), over bytes."""

from torch import Tensor, nn


class ByteLSTM(nn.Module):
    """Embedding, LSTM layers and a linear head; each sample starts from a zero state.

    Args:
        units: Of each layer, and width of the embedding.
        num_layers: LSTM layers.
        vocab_size: Tokens.
        forget_bias: Initial bias of the forget gates, see `RowLSTM`.
    """

    def __init__(self, *, units: int, num_layers: int, vocab_size: int, forget_bias: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, units)
        self.lstm = nn.LSTM(units, units, num_layers, batch_first=True)
        self.head = nn.Linear(units, vocab_size)
        nn.init.normal_(self.embed.weight, std=0.1)
        for layer in range(num_layers if forget_bias else 0):
            bias: Tensor = getattr(self.lstm, f"bias_hh_l{layer}")
            nn.init.constant_(bias[units : 2 * units], forget_bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, positions) of any integer type to logits (n, positions, vocab_size) of the next ones."""
        hidden, _ = self.lstm(self.embed(tokens.int()))
        logits: Tensor = self.head(hidden)
        return logits
