#!/usr/bin/env python
"""Fine-tuning (here: training from scratch) a small transformer for text classification with the Trainer.

The task: from which module of Python's standard library is a piece of text? It needs no download, neither of data nor of a model.
"""

import logging
import random
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

logger = logging.getLogger(__name__)

PAD, CLS, VOCAB = 256, 257, 258  # after the 256 bytes


@dataclass
class DataTrainingArguments:
    """Arguments pertaining to what data we are going to input our model for training and eval."""

    modules: str = field(
        default="_pydecimal,html.entities,locale,pydoc_data.topics", metadata={"help": "The modules to tell apart, which are the labels."}
    )
    max_seq_length: int = field(default=64, metadata={"help": "Bytes of a piece, with the first token."})
    max_train_samples: int | None = field(default=None, metadata={"help": "For debugging purposes or quicker training."})
    samples_per_label: int = field(default=1080, metadata={"help": "Pieces of each module, to train, evaluate and predict on."})


@dataclass
class ModelArguments:
    """Arguments pertaining to which model/config we are going to train."""

    model_type: str = field(default="bert", metadata={"help": "bert or gpt2", "choices": ["bert", "gpt2"]})
    hidden_size: int = field(default=64)
    num_layers: int = field(default=1)
    num_heads: int = field(default=4)
    dropout: float = field(default=0.0)
    initializer_range: float = field(default=0.1, metadata={"help": "Standard deviation of the first weights."})


class TextDataset(torch.utils.data.Dataset):
    def __init__(self, texts, labels, max_seq_length):
        self.input_ids = [[CLS, *text[: max_seq_length - 1]] for text in texts]
        self.labels = labels
        self.max_seq_length = max_seq_length

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        ids = self.input_ids[i]
        padding = self.max_seq_length - len(ids)
        mask = [1] * len(ids) + [0] * padding
        return {"input_ids": ids + [PAD] * padding, "attention_mask": mask, "label": self.labels[i]}


def load_texts(data_args):
    """Pieces of the modules with their labels, in an order that doesn't depend on the seed of the training."""
    examples = []
    size = data_args.max_seq_length - 1
    for label, module in enumerate(data_args.modules.split(",")):
        text = Path(sysconfig.get_path("stdlib"), *module.split(".")).with_suffix(".py").read_bytes()
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        random.Random(label).shuffle(pieces)
        examples += [(piece, label) for piece in pieces[: data_args.samples_per_label]]
    random.Random(0).shuffle(examples)
    return examples


def build_model(model_args, data_args, num_labels):
    if model_args.model_type == "bert":
        config = BertConfig(
            vocab_size=VOCAB,
            hidden_size=model_args.hidden_size,
            num_hidden_layers=model_args.num_layers,
            num_attention_heads=model_args.num_heads,
            intermediate_size=2 * model_args.hidden_size,
            max_position_embeddings=data_args.max_seq_length,
            hidden_dropout_prob=model_args.dropout,
            attention_probs_dropout_prob=model_args.dropout,
            initializer_range=model_args.initializer_range,
            num_labels=num_labels,
            pad_token_id=PAD,
        )
        return BertForSequenceClassification(config)
    config = GPT2Config(
        vocab_size=VOCAB,
        n_embd=model_args.hidden_size,
        n_layer=model_args.num_layers,
        n_head=model_args.num_heads,
        n_positions=data_args.max_seq_length,
        resid_pdrop=model_args.dropout,
        embd_pdrop=model_args.dropout,
        attn_pdrop=model_args.dropout,
        num_labels=num_labels,
        pad_token_id=PAD,
        bos_token_id=CLS,
        eos_token_id=CLS,
    )
    return GPT2ForSequenceClassification(config)


def compute_metrics(p):
    return {"accuracy": float((np.argmax(p.predictions, axis=1) == p.label_ids).mean())}


def main():
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, TrainingArguments))
    parser.set_defaults(do_train=True, do_eval=True, do_predict=True, eval_strategy="epoch", save_strategy="no", lr_scheduler_type="cosine")
    parser.set_defaults(
        learning_rate=2e-3,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        num_train_epochs=2,
        warmup_steps=36,
        weight_decay=0.01,
    )
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    training_args.report_to = []  # no trackers

    logging.basicConfig(format="%(asctime)s - %(levelname)s - %(name)s - %(message)s", datefmt="%m/%d/%Y %H:%M:%S", level=logging.INFO)
    logger.info("Training/evaluation parameters %s", training_args)
    set_seed(training_args.seed)

    examples = load_texts(data_args)
    num_train, num_eval = len(examples) * 2 // 3, len(examples) // 6
    splits = {
        "train": examples[:num_train][: data_args.max_train_samples],
        "eval": examples[num_train : num_train + num_eval],
        "test": examples[num_train + num_eval :],
    }
    datasets = {name: TextDataset(*zip(*split, strict=True), data_args.max_seq_length) for name, split in splits.items()}
    logger.info("Samples: %s", {name: len(dataset) for name, dataset in datasets.items()})

    trainer = Trainer(
        model=build_model(model_args, data_args, num_labels=len(data_args.modules.split(","))),
        args=training_args,
        train_dataset=datasets["train"],
        eval_dataset=datasets["eval"],
        data_collator=default_data_collator,
        compute_metrics=compute_metrics,
    )

    if training_args.do_train:
        train_result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        metrics = {**train_result.metrics, "train_samples": len(datasets["train"])}
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
        trainer.save_state()

    if training_args.do_eval:
        logger.info("*** Evaluate ***")
        metrics = {**trainer.evaluate(), "eval_samples": len(datasets["eval"])}
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    if training_args.do_predict:
        logger.info("*** Predict ***")
        metrics = {**trainer.predict(datasets["test"], metric_key_prefix="test").metrics, "test_samples": len(datasets["test"])}
        trainer.log_metrics("test", metrics)
        trainer.save_metrics("test", metrics)


if __name__ == "__main__":
    main()
