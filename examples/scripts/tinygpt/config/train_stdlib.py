"""Train a miniature GPT on the bytes of Python's standard library, in seconds on one core of a CPU."""

out_dir = "out-stdlib"
eval_interval = 60
log_interval = 30

batch_size = 8
gradient_accumulation_steps = 1
block_size = 48  # context of up to 47 previous bytes

n_layer = 2
n_head = 3
n_embd = 48
dropout = 0.0

learning_rate = 6e-3  # with networks this small one can afford to go high
max_iters = 300
warmup_iters = 45
min_lr = 0.0
weight_decay = 0.1
beta1 = 0.9
beta2 = 0.95
