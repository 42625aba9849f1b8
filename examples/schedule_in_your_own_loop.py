"""The linear rule with gradual warm-up in a plain training loop: bigbatch plans, the loop is yours. No trainer.

python examples/schedule_in_your_own_loop.py
"""

import torch
import torch.nn.functional as F

import bigbatch
from bigbatch.tasks import load_task

train, validation, _ = load_task("digits/mlp").splits()
inputs, targets = train.tensors

tuned = bigbatch.Recipe.named("digits/mlp")  # at a batch of 32
plan = bigbatch.plan(tuned, global_batch=128, rule="linear")
for change in plan.changes:
    print(f"{change.field}: {change.before} -> {change.after}  ({change.why})")

recipe = plan.recipe
torch.manual_seed(recipe.seed)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
optimizer = bigbatch.build_optimizer(model, recipe)
scheduler = bigbatch.build_scheduler(optimizer, recipe)

for _ in range(recipe.num_updates):
    index = torch.randint(len(inputs), (recipe.batch.global_batch,))
    F.cross_entropy(model(inputs[index]), targets[index]).backward()
    optimizer.step()
    optimizer.zero_grad()
    scheduler.step()  # once per update: the schedule counts samples, not steps

x, y = validation.tensors
print(f"validation accuracy {100 * (model(x).argmax(1) == y).float().mean():.1f} %")
