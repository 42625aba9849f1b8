r"""Backup workers: synchronous SGD that does not wait for the slowest workers.

Paper:   Chen, Pan, Monga, Bengio, Jozefowicz 2016, Revisiting Distributed Synchronous SGD, arXiv:1604.00981, Algorithms 3 and 4.
Formula: N + b workers compute; an update is the mean of the first N gradients that arrive,
             x_{t+1} = x_t - gamma (1/N) sum over the first N of g_i(x_t)
         and the b late ones are dropped. An update takes as long as the N-th fastest worker.
Units:   seconds.
Differs: the samples of a dropped gradient are assigned again, before others, so that each is still used once an epoch.
"""

from collections.abc import Sequence

from bigbatch.core.checks import UserError
from bigbatch.core.paper import Paper

PAPER = Paper(
    method="Backup workers",
    title="Revisiting Distributed Synchronous SGD",
    authors="Chen et al.",
    year=2016,
    arxiv="1604.00981",
    where="Algorithms 3 and 4",
)


def num_gradients(num_workers: int, backup_workers: int) -> int:
    """N: the number of gradients that an update waits for.

    Raises:
        UserError: If N would not be positive.

    >>> num_gradients(5, 1)
    4
    """
    if not 0 <= backup_workers < num_workers:
        raise UserError(
            f"backup_workers = {backup_workers} of {num_workers} workers: none would be left to wait for; lower it, or start more workers"
        )
    return num_workers - backup_workers


def update_seconds(worker_seconds: Sequence[float], backup_workers: int) -> float:
    """Seconds of an update.

    Args:
        worker_seconds: Seconds of each worker for its gradient.
        backup_workers: b.

    >>> update_seconds([1.0, 1.1, 4.0, 1.2], 0), update_seconds([1.0, 1.1, 4.0, 1.2], 1)
    (4.0, 1.2)
    """
    return sorted(worker_seconds)[num_gradients(len(worker_seconds), backup_workers) - 1]
