"""A plan in a loop of Hugging Face Accelerate: optimizer, schedule, and the noise scale of gradients before they are clipped.

pip install 'bigbatch[accelerate]'; python examples/accelerate_loop.py    (or: torchrun --nproc-per-node 2 ...)
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader

import bigbatch
from bigbatch.integrations.accelerate import AccelerateMonitor
from bigbatch.tasks import load_task

train = load_task("digits/mlp").splits().train
tuned = bigbatch.Recipe.named("digits/mlp")  # at a batch of 32
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))

plan = bigbatch.plan(tuned, global_batch=128, rule="linear")
optimizer = bigbatch.build_optimizer(model, plan.recipe)
scheduler = bigbatch.build_scheduler(optimizer, plan.recipe)

accelerator = Accelerator(cpu=True)
accelerator.gradient_accumulation_steps = 4 // accelerator.num_processes
loader = DataLoader(train, batch_size=32, shuffle=True, drop_last=True)
model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
monitor = AccelerateMonitor(accelerator, model, optimizer, scheduler, population=len(train))
for _ in range(10):
    for inputs, targets in loader:
        with accelerator.accumulate(model):
            monitor.backward(F.cross_entropy(model(inputs), targets), num_samples=len(inputs))  # instead of accelerator.backward
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
estimate = monitor.estimate()  # on every process
accelerator.print("noise scale:", estimate)
