"""A training loop of your own, proved to make the same update however its batch is cut.

python examples/check_your_own_loop.py                  (trains; or: torchrun --nproc-per-node 2 examples/check_your_own_loop.py)
bigbatch check examples/check_your_own_loop.py          (in one pass, in micro-batches, on 1, 2 and 4 workers)
"""

import os

import torch
from sklearn.datasets import load_digits
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from bigbatch.testing import probe

os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"} if "RANK" not in os.environ else {}
distributed.init_process_group("gloo")
workers, rank = distributed.get_world_size(), distributed.get_rank()
told = probe(micro_batch=32, accumulation=2, epochs=3, num_workers=workers, rank=rank)  # what the checker says; else these
torch.manual_seed(told.seed)
digits = load_digits()
data = told.data(TensorDataset(torch.tensor(digits.data / 16, dtype=told.dtype), torch.tensor(digits.target)))
sampler = DistributedSampler(data)
loader = DataLoader(data, batch_size=told.micro_batch, sampler=sampler)
model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for epoch in range(told.epochs):
    sampler.set_epoch(epoch)
    batches = list(loader)
    for window in (batches[i : i + told.accumulation] for i in range(0, len(batches), told.accumulation)):
        distributed.all_reduce(samples := torch.tensor(float(sum(len(y) for _, y in window))))  # of the update, on all workers
        for x, y in window:
            loss = nn.functional.cross_entropy(model(x), y, reduction="sum") / samples
            (loss * workers).backward()  # DistributedDataParallel takes the mean over workers
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch + 1}: loss of the last micro-batch {loss.item():.4f}")
distributed.destroy_process_group()
