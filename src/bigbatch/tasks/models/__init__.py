"""Models as plain functions: sizes in, freshly initialised `nn.Module` out, from torch's global random state."""

from bigbatch.tasks.models.byte_lstm import ByteLSTM
from bigbatch.tasks.models.cnn import cnn
from bigbatch.tasks.models.gpt import GPT
from bigbatch.tasks.models.lstm import RowLSTM
from bigbatch.tasks.models.mlp import mlp
from bigbatch.tasks.models.resnet8 import resnet8
from bigbatch.tasks.models.vit import ViT

__all__ = ["GPT", "ByteLSTM", "RowLSTM", "ViT", "cnn", "mlp", "resnet8"]
