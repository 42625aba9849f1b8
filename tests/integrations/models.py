"""A small GPT-2 and a small ResNet of Transformers, from configurations, and data for them: nothing is downloaded."""

import torch

NO_DROPOUT = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
NUM_SAMPLES = 40
"""Not a multiple of the batch: the last update of each epoch is short."""


class Rows(torch.utils.data.Dataset):
    def __init__(self, **columns):
        self.columns = columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index):
        return {name: column[index] for name, column in self.columns.items()}


def gpt2(dtype=torch.float64):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    config = GPT2Config(vocab_size=19, n_positions=12, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, **NO_DROPOUT)
    model = GPT2LMHeadModel(config).to(dtype)
    model.loss_type = "ForCausalLM"  # or the Trainer counts the first token of each sequence too
    return model


def tokens(num_samples=NUM_SAMPLES, length=12):
    """Sequences of which parts of unequal length are predicted: tokens weigh, and not samples."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(19, (num_samples, length), generator=generator)
    ids[:, 1::2] = ids[:, ::2]  # something to learn
    labels = ids.clone()
    labels[torch.arange(length) >= torch.randint(3, length + 1, (num_samples, 1), generator=generator)] = -100
    return Rows(input_ids=ids, labels=labels)


def resnet(dtype=torch.float64):
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(1)
    config = ResNetConfig(num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    model = ResNetForImageClassification(config).to(dtype)
    model.accepts_loss_kwargs = False  # its loss does not divide by num_items_in_batch
    return model


def images(num_samples=NUM_SAMPLES, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(3, (num_samples,), generator=generator)
    pixels = torch.randn(num_samples, 1, 32, 32, generator=generator, dtype=dtype) + labels.view(-1, 1, 1, 1)
    return Rows(pixel_values=pixels, labels=labels)
