"""Culprits in words: what the loop does, and what to write instead."""

from bigbatch.check.report import Culprit

WORDS = {
    "mean_of_means": (
        "the loss of an update is a mean of means: a short piece, or a last window with fewer micro-batches, counts as much as a full one",
        "divide by the samples of the whole update: `(losses.sum() / samples_of_the_update).backward()`, over micro-batches and workers",
    ),
    "last_window": (
        "the last micro-batches of an epoch make no update of their own where they don't fill a window",
        "`if (i + 1) % accumulation == 0 or i + 1 == len(loader): optimizer.step()`, with the loss divided by the samples of that window",
    ),
    "token_weighting": (
        "the loss is a mean of means over tokens: a token of a piece with few tokens counts more than one of a piece with many",
        "`(token_losses.sum() / tokens_of_the_update).backward()`: first count the tokens of all micro-batches and, by all-reduce, of all "
        "workers; DistributedDataParallel averages, so multiply by the number of workers",
    ),
    "interaction": (
        "the loss of a sample depends on the others of its forward pass (in-batch negatives, statistics over a batch)",
        "gather the embeddings of the whole update before the loss, or keep the micro-batch fixed while workers change",
    ),
    "no_all_reduce": (
        "every worker steps with gradients of its own samples",
        "`model = DistributedDataParallel(model)`, or all-reduce gradients before `optimizer.step()` and divide by the number of workers",
    ),
    "scale": (
        "gradients have another length",
        "",  # by what it depends on: see `scale`
    ),
    "learning_rate": (
        "the learning rate of an update depends on the number of micro-batches or workers",
        "count updates: `total = epochs * ceil(samples / global_batch)`, not len(loader), and step the schedule once per update",
    ),
    "scheduler": (
        "scheduler.step() is called more than once per update",
        "`if update_is_made: optimizer.step(); scheduler.step()`: once per update in every worker, not per micro-batch, not per process",
    ),
    "clipping": (
        "gradients are clipped before they are summed",
        "clip once per update, after the last micro-batch's backward() and the all-reduce, right before `optimizer.step()`",
    ),
    "drop_last": (
        "drop_last leaves out other samples in each arrangement",
        "`DataLoader(..., drop_last=False)`, with the loss divided by the samples of the update; or drop updates, not micro-batches",
    ),
    "set_epoch": (
        "a DistributedSampler without set_epoch gives the same order in every epoch",
        "`for epoch in range(epochs): sampler.set_epoch(epoch)` before the loader is iterated",
    ),
    "batch_norm": (
        "batch norm takes its statistics over a micro-batch of one worker, so they change with the cut",
        "keep the samples per forward pass fixed, or normalise over fixed groups: "
        "`bigbatch.layers.convert_batch_norm(model, ghost_batch)`; to check the rest: --allow batch_norm",
    ),
    "dropout": (
        "dropout draws other masks when the batch is cut differently",
        "nothing, if that is meant: --allow dropout checks the rest without it",
    ),
    "randomness": (
        "two runs in the same arrangement differ",
        "`torch.manual_seed(probe.seed)`, and the same for every generator that the loop makes",
    ),
    "initial_weights": (
        "the weights before the first update depend on the arrangement",
        "`torch.manual_seed(probe.seed)` before the model is built, in every worker alike; or broadcast worker 0's weights",
    ),
    "update_per_micro_batch": (
        "optimizer.step() is called for every micro-batch",
        "`if (i + 1) % accumulation == 0: optimizer.step(); optimizer.zero_grad()`",
    ),
    "shared_samples": (
        "several workers draw the same samples",
        "`DataLoader(data, sampler=DistributedSampler(data), ...)`: a share of the samples for each worker",
    ),
    "sample_order": (
        "the first update is made of other samples",
        "draw one permutation per epoch from the seed and the epoch, and give worker r every n-th sample of it: DistributedSampler does so",
    ),
    "unexplained": (
        "the update differs, and no experiment removes that",
        "compare the loss and the gradients of the first update by hand, at the arrangement that is named",
    ),
}
"""Of each culprit: what the loop does, and the remedy."""

SAME_LENGTH = 1e-3


def culprit(name: str, evidence: str) -> Culprit:
    """One culprit with its evidence."""
    sentence, remedy = WORDS[name]
    return Culprit(name, sentence, evidence, remedy)


def depends_on(ratios: dict[int, float]) -> bool:
    """Whether lengths of gradients, over the reference's, depend on a number."""
    return any(abs(ratio - 1) > SAME_LENGTH for ratio in ratios.values())


def scale(by_micro_batches: dict[int, float], by_workers: dict[int, float], evidence: str) -> Culprit:
    """The culprit "scale", from the lengths of gradients at numbers of micro-batches, and of workers, each over the reference's.

    >>> scale({2: 2.0, 4: 4.0}, {2: 1.0}, "").sentence
    'gradients are multiplied by the number of micro-batches'
    >>> scale({2: 1.0}, {2: 0.5, 4: 0.25}, "").sentence
    'gradients are divided by the number of workers: the loss is scaled twice'
    """
    what, remedies = [], []
    how = _power(by_micro_batches)
    if how is not None:
        what.append(f"{how} by the number of micro-batches")
        remedies.append("`(losses.sum() / samples_of_the_update).backward()`, once: divided over all micro-batches and no more")
    how = _power(by_workers)
    if how is not None:
        twice = ": the loss is scaled twice" if how == "divided" else ": summed over the workers where the mean is meant"
        what.append(f"{how} by the number of workers{twice}")
        remedies.append(
            "DistributedDataParallel takes the mean over workers: don't divide by their number again, and where you divide by a sum over "
            "all workers, multiply by their number once"
        )
    sentence = f"gradients are {' and '.join(what)}" if what else "gradients have another length in each arrangement"
    return Culprit("scale", sentence, evidence, "; ".join(remedies) or "divide by the samples of the whole update")


def _power(ratios: dict[int, float]) -> str | None:
    """How ratios depend on numbers; None where they are all 1."""
    if not depends_on(ratios):
        return None
    for word, power in {"multiplied": 1, "divided": -1, "multiplied twice": 2, "divided twice": -2}.items():
        if all(abs(ratio / number**power - 1) <= SAME_LENGTH for number, ratio in ratios.items()):
            return word
    return "changed"
