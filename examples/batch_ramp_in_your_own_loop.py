"""A batch that doubles on the way, in a plain loop over a DataLoader: micro-batches stay, and updates are made of more of them.

python examples/batch_ramp_in_your_own_loop.py        (UCI's digits)
"""

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from bigbatch.batching import AdaBatch, Updates
from bigbatch.core.clock import Clock
from bigbatch.tasks import load_task

torch.manual_seed(0)
task = load_task("digits/mlp")
model, data = task.model(), task.splits()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
grow = AdaBatch(global_batch=32, every_epochs=2, num_train_samples=len(data.train), rate_factor=1.0, largest=256)
updates, clock, epochs = Updates(DataLoader(data.train, batch_size=16, shuffle=True), global_batch=32), Clock(0, 0), 8

for _ in range(epochs):
    for update in updates:
        for inputs, targets in update:
            loss = F.cross_entropy(model(inputs), targets, reduction="sum") / update.num_samples  # ragged ones weigh right
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        clock = clock.after(update.num_samples)
        updates.global_batch = grow.at(clock).global_batch  # the next update has it

images, labels = data.test.tensors
accuracy = (model(images).argmax(1) == labels).float().mean().item()
print(f"{clock.updates} updates, the last of {updates.global_batch} samples; test accuracy {accuracy:.3f}")
