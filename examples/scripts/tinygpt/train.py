"""Train a tiny GPT on the bytes of Python's own standard library.

$ python train.py config/train_stdlib.py
$ python train.py config/train_stdlib.py --batch_size=32 --learning_rate=5e-3
$ python train.py config/train_stdlib.py --init_from=resume
"""

import json
import math
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch
from model import GPT, GPTConfig

# -----------------------------------------------------------------------------
# default config values, overridden by a config file and by --key=value
# I/O
out_dir = "out"
eval_interval = 100
log_interval = 10
eval_sequences = 128  # of each split, on the way; at the end, all
init_from = "scratch"  # 'scratch' or 'resume'
# data
num_bytes = 600_000
gradient_accumulation_steps = 1
batch_size = 16  # sequences; if gradient_accumulation_steps > 1, this is the micro-batch size
block_size = 64
# model
n_layer = 2
n_head = 4
n_embd = 64
dropout = 0.0
# adamw optimizer
learning_rate = 1e-3  # max learning rate
max_iters = 1000  # total number of training iterations
weight_decay = 1e-1
beta1 = 0.9
beta2 = 0.95
grad_clip = 1.0  # clip gradients at this value, or disable if == 0.0
# learning rate decay settings
decay_lr = True
warmup_iters = 100
min_lr = 1e-4
# system
seed = 1337
device = "cuda" if torch.cuda.is_available() else "cpu"
# -----------------------------------------------------------------------------
config_keys = [k for k, v in globals().items() if not k.startswith("_") and isinstance(v, (int, float, bool, str))]
exec((Path(__file__).parent / "configurator.py").read_text())  # overrides from command line or config file
config = {k: globals()[k] for k in config_keys}  # will be useful for logging
# -----------------------------------------------------------------------------

out_dir = Path(out_dir)
out_dir.mkdir(parents=True, exist_ok=True)
torch.manual_seed(seed)
print(f"tokens per iteration will be: {gradient_accumulation_steps * batch_size * block_size:,}")


def load_data():
    """The library's modules, one after the other: the first 90 % to train on, then 5 % to validate and 5 % to test on."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("[!_]*.py"), key=lambda path: path.name)
    text, i = b"", 0
    while len(text) < num_bytes and i < len(modules):
        text, i = text + modules[i].read_bytes(), i + 1
    data = torch.from_numpy(np.frombuffer(text[:num_bytes], dtype=np.uint8).astype(np.int64))
    n = len(data)
    return {"train": data[: int(0.9 * n)], "val": data[int(0.9 * n) : int(0.95 * n)], "test": data[int(0.95 * n) :]}


data = load_data()


def get_batch(split):
    ix = torch.randint(len(data[split]) - block_size, (batch_size,)).tolist()
    x = torch.stack([data[split][i : i + block_size] for i in ix])
    y = torch.stack([data[split][i + 1 : i + 1 + block_size] for i in ix])
    return x.to(device), y.to(device)


@torch.no_grad()
def estimate_loss(split, max_sequences=math.inf):
    """Mean loss over sequences at even distances in a split: the same ones each time, so that curves are smooth."""
    count = min(max_sequences, (len(data[split]) - 1) // block_size)
    starts = torch.linspace(0, len(data[split]) - block_size - 1, count).long().tolist()
    x = torch.stack([data[split][i : i + block_size] for i in starts])
    y = torch.stack([data[split][i + 1 : i + 1 + block_size] for i in starts])
    model.eval()
    total = sum(model(a.to(device), b.to(device))[1].item() * len(a) for a, b in zip(x.split(128), y.split(128), strict=True))
    model.train()
    return total / count


def get_lr(it):
    # 1) linear warmup for warmup_iters steps
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    # 2) in between, use cosine decay down to min learning rate
    decay_ratio = min(1.0, (it - warmup_iters) / max(1, max_iters - warmup_iters))
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * decay_ratio)) * (learning_rate - min_lr)


iter_num, last_eval = 0, -1
if init_from == "resume":
    print(f"Resuming training from {out_dir}")
    checkpoint = torch.load(out_dir / "ckpt.pt", map_location=device)
    model_args = checkpoint["model_args"]
    iter_num = last_eval = checkpoint["iter_num"]
else:
    model_args = {k: config[k] for k in ("block_size", "n_layer", "n_head", "n_embd", "dropout")}
    (out_dir / "log.jsonl").write_text("")
model = GPT(GPTConfig(**model_args)).to(device)
optimizer = model.configure_optimizers(weight_decay, learning_rate, (beta1, beta2))
if init_from == "resume":
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    for group in optimizer.param_groups:
        group["betas"] = (beta1, beta2)
    torch.set_rng_state(checkpoint["rng_state"].cpu())
print(f"number of parameters: {sum(p.numel() for p in model.parameters()) / 1e3:.1f}K")

t0 = time.time()
while True:
    lr = get_lr(iter_num) if decay_lr else learning_rate
    for param_group in optimizer.param_groups:
        param_group["lr"] = lr

    # evaluate the loss on train/val sets and write checkpoints
    if (iter_num % eval_interval == 0 or iter_num == max_iters) and iter_num != last_eval:
        losses = {split: estimate_loss(split, max_sequences=eval_sequences) for split in ("train", "val")}
        print(f"step {iter_num}: train loss {losses['train']:.4f}, val loss {losses['val']:.4f}", flush=True)
        with open(out_dir / "log.jsonl", "a") as f:
            f.write(json.dumps({"iter": iter_num, "val_loss": losses["val"], "train_loss": losses["train"], "lr": lr}) + "\n")
        checkpoint = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "model_args": model_args,
            "iter_num": iter_num,
            "rng_state": torch.get_rng_state(),
            "config": config,
        }
        torch.save(checkpoint, out_dir / "ckpt.pt")
    if iter_num >= max_iters:
        break

    # forward backward update, with gradient accumulation to simulate larger batch size
    for _ in range(gradient_accumulation_steps):
        X, Y = get_batch("train")
        logits, loss = model(X, Y)
        loss = loss / gradient_accumulation_steps  # scale the loss to account for gradient accumulation
        loss.backward()
    if grad_clip != 0.0:
        torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

    # timing and logging
    if iter_num % log_interval == 0:
        dt, t0 = time.time() - t0, time.time()
        print(f"iter {iter_num}: loss {loss.item() * gradient_accumulation_steps:.4f}, time {dt * 1000:.2f}ms")
    iter_num += 1

result = {f"{split}_loss": estimate_loss(split) for split in ("val", "test")}
(out_dir / "result.json").write_text(json.dumps(result, indent=2) + "\n")
print(f"val loss {result['val_loss']:.4f}, test loss {result['test_loss']:.4f}")
