"""A plan in Hugging Face's Trainer: its batch, optimizer and rate, and the noise scale of gradients before they are clipped, in the logs.

pip install 'bigbatch[transformers]'; python examples/transformers_trainer.py    (or: torchrun --nproc-per-node 2 ...)
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import bigbatch
from bigbatch.integrations.transformers import BigBatchCallback, build, training_arguments

TUNED = """
num_train_samples = 1024
optimizer = { name = "adamw", lr = 2e-3, weight_decay = 0.1, decay_norms_and_biases = false, clip_norm = 1.0 }
schedule = { warmup = { kind = "gradual", samples = 256 }, decay = { kind = "cosine" } }
batch = { global_batch = 16 }
budget = { epochs = 2 }
"""
torch.manual_seed(0)
ids = torch.randint(32, (1024, 16))
ids[:, 1::2] = ids[:, ::2]  # every other token repeats the one before
samples = [{"input_ids": row, "labels": row} for row in ids]
model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0))
model.loss_type = "ForCausalLM"  # the Trainer's count of tokens needs it

plan = bigbatch.plan(bigbatch.Recipe.from_toml(TUNED), global_batch=64, rule="adamw")
arguments, left_out = training_arguments(plan)
print(*left_out, sep="\n")  # what no argument can say, and who does it
others = {"output_dir": "runs/trainer", "save_strategy": "no", "logging_steps": 8, "use_cpu": True, "report_to": "none"}
trainer = Trainer(model, TrainingArguments(**arguments, **others), train_dataset=samples, optimizers=build(model, plan))
trainer.add_callback(BigBatchCallback(trainer))
trainer.train()
