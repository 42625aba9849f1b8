"""Small training loops as people write them: right ones, and copies of publicly reported faults."""

import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

IGNORED = -100


def points(n=100):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 6, generator=g)
    return TensorDataset(x, (x @ torch.randn(6, 3, generator=g) + 0.5 * torch.randn(n, 3, generator=g)).argmax(1))


def sentences(n=100):
    """Token sequences of 3 to 12, padded: the first token of a target is never predicted from nothing."""
    g = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 9, (n, 12), generator=g)
    targets = (ids + ids.roll(1, 1)) % 9
    for i, length in enumerate(torch.randint(3, 13, (n,), generator=g).tolist()):
        targets[i, length:] = IGNORED
        ids[i, length:] = 0
    return [{"ids": ids[i], "targets": targets[i]} for i in range(n)]


def mlp():
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def language_model():
    return nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 9))


def loader_of(probe, dataset, **kwargs):
    data = probe.data(dataset)
    sampler = DistributedSampler(data, num_replicas=probe.num_workers, rank=probe.rank)
    return DataLoader(data, batch_size=probe.micro_batch, sampler=sampler, **kwargs), sampler


def windows(loader, n):
    """Micro-batches of each update; the last update of an epoch may have fewer."""
    window = []
    for batch in loader:
        window.append(batch)
        if len(window) == n:
            yield window
            window = []
    if window:
        yield window


def summed(count):
    """A count over all workers."""
    total = torch.tensor(float(count))
    distributed.all_reduce(total)
    return total


# Right ones


def right_samples(probe):
    """DistributedDataParallel; losses are divided by the samples of the update; clipped once, scheduled once."""
    model = DistributedDataParallel(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    loader, sampler = loader_of(probe, points())
    for epoch in range(probe.epochs):
        sampler.set_epoch(epoch)
        for window in windows(loader, probe.accumulation):
            total = summed(sum(len(y) for _, y in window))
            for x, y in window:
                (F.cross_entropy(model(x), y, reduction="sum") * probe.num_workers / total).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


def right_tokens(probe):
    """AdamW; losses are divided by the tokens of the update, over micro-batches and workers (transformers #34373)."""
    model = DistributedDataParallel(language_model())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader, sampler = loader_of(probe, sentences())
    for epoch in range(1, probe.epochs + 1):
        sampler.set_epoch(epoch)
        for window in windows(loader, probe.accumulation):
            tokens = summed(sum(int((batch["targets"] != IGNORED).sum()) for batch in window))
            for batch in window:
                loss = F.cross_entropy(model(batch["ids"]).transpose(1, 2), batch["targets"], ignore_index=IGNORED, reduction="sum")
                (loss * probe.num_workers / tokens).backward()
            optimizer.step()
            optimizer.zero_grad()


def right_by_hand(probe):
    """No wrapper: a shuffled loader of whole batches, cut into pieces by hand, gradients summed over workers; random augmentation."""

    class Noisy(torch.utils.data.Dataset):
        def __init__(self, inner):
            self.inner = inner

        def __len__(self):
            return len(self.inner)

        def __getitem__(self, i):
            x, y = self.inner[i]
            return x + 0.1 * torch.randn(6), y

    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
    loader = DataLoader(probe.data(Noisy(points())), batch_size=probe.global_batch, shuffle=True, num_workers=2)
    for _ in range(probe.epochs):
        for x, y in loader:
            own = range(probe.rank, len(x), probe.num_workers)
            for piece in torch.tensor(own).split(probe.micro_batch):
                (F.cross_entropy(model(x[piece]), y[piece], reduction="sum") / len(x)).backward()
            for p in model.parameters():
                distributed.all_reduce(p.grad)
            nn.utils.clip_grad_value_(model.parameters(), 0.05)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


def right_whole_batches(probe):
    """One worker shuffles, several use a DistributedSampler; an update that isn't whole is left out, in all arrangements alike."""
    model = DistributedDataParallel(nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = probe.data(points())
    sampler = DistributedSampler(data) if probe.num_workers > 1 else None
    loader = DataLoader(data, batch_size=probe.micro_batch, sampler=sampler, shuffle=sampler is None, drop_last=True)
    for epoch in range(probe.epochs):
        if sampler is not None:
            sampler.set_epoch(epoch)
        for i, (x, y) in enumerate(loader):
            (F.cross_entropy(model(x), y) / probe.accumulation).backward()
            if (i + 1) % probe.accumulation == 0:
                optimizer.step()
                optimizer.zero_grad()
        optimizer.zero_grad()


# Faults


def mean_of_means(probe):
    """A last window with fewer micro-batches is divided by the full number (Lightning #19987); a short piece counts like a long one."""
    model = DistributedDataParallel(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader, sampler = loader_of(probe, points())
    for epoch in range(probe.epochs):
        sampler.set_epoch(epoch)
        for i, (x, y) in enumerate(loader):
            (F.cross_entropy(model(x), y) / probe.accumulation).backward()
            if (i + 1) % probe.accumulation == 0 or i + 1 == len(loader):
                optimizer.step()
                optimizer.zero_grad()


def token_weighting(probe):
    """The mean over the tokens of a micro-batch, averaged over micro-batches (transformers #24725, torchtune #1875)."""
    model = DistributedDataParallel(language_model())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader, sampler = loader_of(probe, sentences())
    for epoch in range(probe.epochs):
        sampler.set_epoch(epoch)
        for window in windows(loader, probe.accumulation):
            for batch in window:
                loss = F.cross_entropy(model(batch["ids"]).transpose(1, 2), batch["targets"], ignore_index=IGNORED)
                (loss / len(window)).backward()
            optimizer.step()
            optimizer.zero_grad()


def batch_norm(probe):
    """Statistics of each micro-batch, not of the update (giotto-deep #75, GradientAccumulator #6); all else as in `right_samples`."""
    model = DistributedDataParallel(nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader, sampler = loader_of(probe, points())
    for epoch in range(probe.epochs):
        sampler.set_epoch(epoch)
        for window in windows(loader, probe.accumulation):
            total = summed(sum(len(y) for _, y in window))
            for x, y in window:
                (F.cross_entropy(model(x), y, reduction="sum") * probe.num_workers / total).backward()
            optimizer.step()
            optimizer.zero_grad()


def scheduler(probe):
    """lr_scheduler.step() in every micro-batch (starVLA #210), and once per process (transformers #24088)."""
    model = DistributedDataParallel(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    loader, sampler = loader_of(probe, points())
    for epoch in range(probe.epochs):
        sampler.set_epoch(epoch)
        for window in windows(loader, probe.accumulation):
            total = summed(sum(len(y) for _, y in window))
            for i, (x, y) in enumerate(window):
                (F.cross_entropy(model(x), y, reduction="sum") * probe.num_workers / total).backward()
                if i + 1 == len(window):
                    optimizer.step()
                    optimizer.zero_grad()
                for _ in range(probe.num_workers):
                    schedule.step()


def clipping(probe):
    """clip_grad_norm_ after each micro-batch's backward (transformers #986, lingua #59)."""
    model = DistributedDataParallel(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader, sampler = loader_of(probe, points())
    for epoch in range(probe.epochs):
        sampler.set_epoch(epoch)
        for window in windows(loader, probe.accumulation):
            total = summed(sum(len(y) for _, y in window))
            for x, y in window:
                (F.cross_entropy(model(x), y, reduction="sum") * probe.num_workers / total).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


def world_size(probe):
    """Divided by the tokens of all workers, and by DistributedDataParallel's mean once more (transformers #37474, PR #40610)."""
    model = DistributedDataParallel(language_model())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader, sampler = loader_of(probe, sentences())
    for epoch in range(probe.epochs):
        sampler.set_epoch(epoch)
        for window in windows(loader, probe.accumulation):
            num_items_in_batch = summed(sum(int((batch["targets"] != IGNORED).sum()) for batch in window))
            for batch in window:
                loss = F.cross_entropy(model(batch["ids"]).transpose(1, 2), batch["targets"], ignore_index=IGNORED, reduction="sum")
                (loss / num_items_in_batch).backward()
            optimizer.step()
            optimizer.zero_grad()


def set_epoch(probe):
    """A DistributedSampler whose epoch is never set (pytorch #31771, DALLE-pytorch #230)."""
    model = DistributedDataParallel(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader, _ = loader_of(probe, points())
    for _ in range(probe.epochs):
        for window in windows(loader, probe.accumulation):
            total = summed(sum(len(y) for _, y in window))
            for x, y in window:
                (F.cross_entropy(model(x), y, reduction="sum") * probe.num_workers / total).backward()
            optimizer.step()
            optimizer.zero_grad()


def drop_last(probe):
    """drop_last=True beside accumulation (Lightning #19684): how much is left out depends on the micro-batch."""
    model = DistributedDataParallel(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader, sampler = loader_of(probe, points(), drop_last=True)
    for epoch in range(probe.epochs):
        sampler.set_epoch(epoch)
        for window in windows(loader, probe.accumulation):
            total = summed(sum(len(y) for _, y in window))
            for x, y in window:
                (F.cross_entropy(model(x), y, reduction="sum") * probe.num_workers / total).backward()
            optimizer.step()
            optimizer.zero_grad()


def dropout(probe):
    """Dropout, which no cut of a batch leaves alone (LLMs-from-scratch #519); all else is right."""
    model = DistributedDataParallel(nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader, sampler = loader_of(probe, points())
    for epoch in range(probe.epochs):
        sampler.set_epoch(epoch)
        for window in windows(loader, probe.accumulation):
            total = summed(sum(len(y) for _, y in window))
            for x, y in window:
                (F.cross_entropy(model(x), y, reduction="sum") * probe.num_workers / total).backward()
            optimizer.step()
            optimizer.zero_grad()


# More faults, alone and in company


def own_loop(probe, model=None, *, wrapped=True, scaled=True, clip="", schedule=None, loss=F.cross_entropy):
    """`right_samples`, with something exchanged."""
    model = mlp() if model is None else model
    model = DistributedDataParallel(model) if wrapped else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader, sampler = loader_of(probe, points())
    scheduler = schedule(optimizer, len(loader)) if schedule else None
    for epoch in range(probe.epochs):
        sampler.set_epoch(epoch)
        for window in windows(loader, probe.accumulation):
            total = summed(sum(len(y) for _, y in window))
            for x, y in window:
                (loss(model(x), y, reduction="sum") * (probe.num_workers if scaled else 1) / total).backward()
                if clip == "each micro-batch":
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if clip == "before the all-reduce":
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                for p in model.parameters():
                    distributed.all_reduce(p.grad)
                    p.grad /= probe.num_workers
            optimizer.step()
            optimizer.zero_grad()
            if scheduler is not None:
                scheduler.step()


def accumulated_sum(probe, clip=False):
    """Means are summed over micro-batches and never divided (yolov5 #1630, verl PR #436)."""
    model = DistributedDataParallel(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loader, sampler = loader_of(probe, points())
    for epoch in range(probe.epochs):
        sampler.set_epoch(epoch)
        for window in windows(loader, probe.accumulation):
            for x, y in window:
                F.cross_entropy(model(x), y).backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()


def accumulated_sum_clipped(probe):
    accumulated_sum(probe, clip=True)


def no_all_reduce(probe):
    """Workers that never hear of one another."""
    own_loop(probe, wrapped=False, scaled=False)


def clipped_before_the_all_reduce(probe):
    """Each worker clips its own gradient (Megatron-LM #1998 makes it an option)."""
    own_loop(probe, wrapped=False, clip="before the all-reduce")


def schedule_of_the_loader(probe):
    """Length of the schedule from len(loader), which counts this worker's micro-batches (ezpz #123, accelerate #628)."""

    def linear(optimizer, length):
        return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=2 * length)

    own_loop(probe, schedule=linear)


def in_batch_negatives(probe):
    """A contrastive loss within each micro-batch (SimCLR #13)."""

    def loss(z, y, reduction):
        z = F.normalize(z)
        return F.cross_entropy(z @ z.T / 0.1, torch.arange(len(z)), reduction=reduction)

    own_loop(probe, loss=loss)


def last_window(probe, every=False):
    """No update for micro-batches at the end of an epoch that fill no window (pet #36, torchseq #8)."""
    model = DistributedDataParallel(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader, sampler = loader_of(probe, points())
    for epoch in range(probe.epochs):
        sampler.set_epoch(epoch)
        for i, (x, y) in enumerate(loader):
            (F.cross_entropy(model(x), y) / probe.accumulation).backward()
            if every or (i + 1) % probe.accumulation == 0:
                optimizer.step()
                optimizer.zero_grad()


def update_per_micro_batch(probe):
    """A step in every micro-batch (entrenar #131)."""
    last_window(probe, every=True)


def seeded_by_rank(probe):
    torch.manual_seed(probe.rank)
    own_loop(probe, wrapped=False)


def unseeded(probe):
    torch.seed()
    own_loop(probe)


def no_sampler(probe):
    """Every worker draws all samples."""
    model = DistributedDataParallel(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = DataLoader(probe.data(points()), batch_size=probe.micro_batch, shuffle=True)
    for _ in range(probe.epochs):
        for window in windows(loader, probe.accumulation):
            for x, y in window:
                (F.cross_entropy(model(x), y, reduction="sum") / sum(len(y) for _, y in window)).backward()
            optimizer.step()
            optimizer.zero_grad()


def batch_norm_and_clipping(probe):
    own_loop(probe, nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)), clip="each micro-batch")


def dropout_and_world_size(probe):
    own_loop(probe, nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 3)), scaled=False)


def in_32_bits(probe):
    """A model whose inputs are made 32 bits long in the loop."""
    model = DistributedDataParallel(mlp().float())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader, sampler = loader_of(probe, points())
    for epoch in range(probe.epochs):
        sampler.set_epoch(epoch)
        for window in windows(loader, probe.accumulation):
            total = float(summed(sum(len(y) for _, y in window)))
            for x, y in window:
                (F.cross_entropy(model(x), y, reduction="sum") * probe.num_workers / total).backward()
            optimizer.step()
            optimizer.zero_grad()


def filled_up(probe):
    """Each worker's last micro-batch is filled with samples from the start of the epoch, as accelerate's even_batches does."""
    model = DistributedDataParallel(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    data = probe.data(points())
    for epoch in range(probe.epochs):
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(epoch)).tolist()
        step = probe.global_batch
        for first in range(0, len(order), step):
            chosen = order[first : first + step]
            if probe.num_workers > 1:
                chosen += order[: step - len(chosen)]
            own = chosen[probe.rank :: probe.num_workers]
            for i in range(0, len(own), probe.micro_batch):
                samples = data[own[i : i + probe.micro_batch]]
                x, y = torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])
                (F.cross_entropy(model(x), y, reduction="sum") / len(own)).backward()
            optimizer.step()
            optimizer.zero_grad()
