"""AdaScale in a hand-written loop: the rate of a batch of 32, at a batch of 512, without a trainer.

    python examples/adascale_in_your_own_loop.py

The monitor measures signal and noise of the gradients that the loop makes anyway; AdaScale turns them into a gain of the rate and into
progress, in updates of the small batch, by which the schedule and the end of the run are set.
"""

import torch

from bigbatch.batching import AdaScale, UpdateMeasurement
from bigbatch.noise import NoiseScaleMonitor
from bigbatch.tasks.data.digits import read_digits

BASE_BATCH, GLOBAL_BATCH, BASE_UPDATES, LR = 32, 512, 800, 0.1


def main():
    torch.manual_seed(0)
    x, y = read_digits()
    x = x.flatten(1) / 16
    train, test = slice(0, 1500), slice(1500, None)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, nesterov=True)
    monitor, adascale = NoiseScaleMonitor(model, population=1500), AdaScale(base_batch=BASE_BATCH)
    updates = 0
    while adascale.progress < BASE_UPDATES:
        index = torch.randperm(1500)[:GLOBAL_BATCH]
        for piece in index.split(GLOBAL_BATCH // 8):
            loss = torch.nn.functional.cross_entropy(model(x[train][piece]), y[train][piece], reduction="sum")
            (loss / GLOBAL_BATCH).backward()
            monitor.micro_batch(len(piece), divisor=GLOBAL_BATCH)
        monitor.update()
        schedule = 1 - adascale.progress / BASE_UPDATES
        optimizer.param_groups[0]["lr"] = LR * schedule * adascale.advance(GLOBAL_BATCH)
        optimizer.step()
        optimizer.zero_grad()
        for measured in monitor.flush():
            adascale.observe(UpdateMeasurement(GLOBAL_BATCH, signal=measured.signal, noise=measured.noise))
        updates += 1
    accuracy = (model(x[test]).argmax(1) == y[test]).float().mean()
    print(f"{100 * accuracy:.1f} % after {updates} updates of {GLOBAL_BATCH} instead of {BASE_UPDATES} of {BASE_BATCH}")
    print(f"noise scale over the last 100 updates: {monitor.estimate(last=100)}")


if __name__ == "__main__":
    main()
