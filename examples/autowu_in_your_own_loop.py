"""AutoWU in a hand-written loop: no rate is given but a bound, and the run finds its own. No trainer.

    python examples/autowu_in_your_own_loop.py

The rate grows from 1e-5 times the bound until the training loss turns; then it goes back to where the loss was lowest, and decays. With
`Kept` the weights go back too, which also helps where the loss is lost to infinity; leave it out for the method as published.
"""

import copy

import torch

from bigbatch.schedules import AutoWU, ClockLR, Kept
from bigbatch.tasks.data.digits import read_digits

GLOBAL_BATCH, UPDATES, BOUND = 256, 200, 100.0


def main():
    torch.manual_seed(0)
    x, y = read_digits()
    x = x.flatten(1) / 16
    train, test = slice(0, 1500), slice(1500, None)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=BOUND, momentum=0.9)
    autowu = AutoWU(total_samples=UPDATES * GLOBAL_BATCH)
    scheduler = ClockLR(optimizer, autowu, global_batch=GLOBAL_BATCH)

    def load(states):
        model.load_state_dict(states[0])
        optimizer.load_state_dict(states[1])

    kept = Kept(save=lambda: copy.deepcopy((model.state_dict(), optimizer.state_dict())), load=load)
    kept.keep(0, minimum=0)
    for update in range(UPDATES):
        index = torch.randperm(1500)[:GLOBAL_BATCH]
        loss = torch.nn.functional.cross_entropy(model(x[train][index]), y[train][index])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        switch = autowu.observe(scheduler.clock, loss.item())  # before the clock goes on: the loss belongs to this rate
        if switch is not None:
            kept.go_back(switch.minimum)
            print(f"update {update}: {switch.reason}; rate back to {BOUND * switch.factor:.3f}")
        elif autowu.switch is None and update % 5 == 4:
            kept.keep(scheduler.clock.samples + GLOBAL_BATCH, autowu.minimum)
        scheduler.step()
    accuracy = (model(x[test]).argmax(1) == y[test]).float().mean()
    print(f"{100 * accuracy:.1f} % on the test set")


if __name__ == "__main__":
    main()
