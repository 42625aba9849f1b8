"""What a training loop is told by the checker, and the data set by which the checker sees what the loop draws."""

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bigbatch.check.arrangement import Arrangement, Setup
from bigbatch.core.checks import UserError
from bigbatch.core.tensors.structure import map_tensors, tensors_of

IGNORED = -100
"""The target that torch's losses leave out."""


class Probe:
    """What the loop is told. Outside the checker it holds what `probe` was given, and `data` gives the data set back.

    Attributes:
        rank: Of this process.
        data_sets: Those that were given to `data`.
        was_read: Whether the loop asked how its batch is cut.
    """

    def __init__(self, setup: Setup, rank: int = 0, *, checked: bool = True) -> None:
        self._setup, self.rank, self._checked = setup, rank, checked
        self.data_sets: list[WatchedData] = []
        self.was_read = False

    @property
    def global_batch(self) -> int:
        """Samples in one update over all workers; the last of an epoch may have fewer."""
        self.was_read = True
        return self._setup.global_batch

    @property
    def local_batch(self) -> int:
        """Samples in one update of this worker."""
        return self.micro_batch * self.accumulation

    @property
    def micro_batch(self) -> int:
        """Samples in one forward pass of this worker; the last may have fewer."""
        self.was_read = True
        return self._setup.micro_batch

    @property
    def accumulation(self) -> int:
        """Micro-batches of this worker in one update; the last of an epoch may have fewer."""
        self.was_read = True
        return self._setup.arrangement.accumulation

    @property
    def num_workers(self) -> int:
        """Processes of the default group, which is there already."""
        return self._setup.arrangement.workers

    @property
    def epochs(self) -> int:
        """Passes over the data."""
        return self._setup.epochs

    @property
    def seed(self) -> int:
        """Python's, numpy's and torch's generators are seeded with it."""
        return self._setup.seed

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters and inputs; it is torch's default meanwhile."""
        return torch.float64 if self._setup.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        """The processor, in the checker; elsewhere a GPU where there is one."""
        return torch.device("cpu" if self._checked or not torch.cuda.is_available() else "cuda")

    def data(self, dataset: Any) -> Any:
        """The training set as the checker wants it: some of its samples, watched, with floating-point numbers of `dtype`.

        Args:
            dataset: Anything with a length and numbered items, as a DataLoader takes it.

        Raises:
            UserError: If it has no length or no items.
        """
        if not self._checked:
            return dataset
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__") or not len(dataset):
            raise UserError(
                f"probe.data({type(dataset).__name__}): must have a length above 0 and numbered items; give a list of some samples"
            )
        self.data_sets.append(WatchedData(dataset, self._setup))
        return self.data_sets[-1]


class WatchedData(Dataset[Any]):
    """Samples of a data set, each drawn with generators seeded by its number, so that random augmentation is the same in every run.

    Attributes:
        drawn: Numbers of the samples that were drawn, in order.
    """

    def __init__(self, dataset: Any, setup: Setup) -> None:
        self._dataset, self._setup = dataset, setup
        self.drawn: list[int] = []
        self._chosen = self._choose()

    def __len__(self) -> int:
        return self._setup.num_samples

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if isinstance(index, list | tuple) or (isinstance(index, Tensor | np.ndarray) and index.ndim):
            return [self[int(i)] for i in index]
        index = range(len(self))[int(index)]
        self.drawn.append(index)
        return self._sample(self._chosen[index % len(self._chosen)])

    def num_forms(self) -> int:
        """How many forms the samples of an epoch have: shapes, and numbers of targets that count."""
        return len({_form(self._sample(i)) for i in self._chosen})

    def _choose(self) -> list[int]:
        first = list(range(min(len(self), len(self._dataset))))
        if "interaction" in self._setup.removed:
            return first[:1]
        if "token_weighting" not in self._setup.removed:
            return first
        forms = [_form(self._sample(i)) for i in first]
        ((most, _),) = Counter(forms).most_common(1)
        return [i for i, form in zip(first, forms, strict=True) if form == most]

    def _sample(self, number: int) -> Any:
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        seed_all(number)
        try:
            return _cast(self._dataset[number], torch.float64 if self._setup.float64 else torch.float32)
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])


def seed_all(seed: int) -> None:
    """Seed the generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


def _cast(sample: Any, dtype: torch.dtype) -> Any:
    """A sample with its floating-point tensors and arrays in a type."""
    if isinstance(sample, dict):
        return {key: _cast(part, dtype) for key, part in sample.items()}
    if isinstance(sample, tuple | list) and not hasattr(sample, "_fields"):
        return type(sample)(_cast(part, dtype) for part in sample)
    if isinstance(sample, np.ndarray | np.floating) and np.issubdtype(sample.dtype, np.floating):
        return sample.astype(np.float64 if dtype == torch.float64 else np.float32)
    return map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, sample)


def _form(sample: Any) -> tuple[Any, ...]:
    """Shapes of a sample's parts; how many whole numbers are ignored, how long their padding is, and how many of a mask are set."""
    parts: list[Any] = []
    for tensor in tensors_of(_as_tensors(sample)):
        parts.append(tuple(tensor.shape))
        if not tensor.dim():
            continue
        if not tensor.is_floating_point():
            values = tensor.flatten()
            parts.append(int((values == IGNORED).sum()))
            parts.append(int((values == values[-1:]).flip(0).cumprod(0).sum()))
        if bool(((tensor == 0) | (tensor == 1)).all()):
            parts.append(int(tensor.sum()))
    return tuple(parts)


def _as_tensors(sample: Any) -> Any:
    if isinstance(sample, dict):
        return {key: _as_tensors(part) for key, part in sample.items()}
    if isinstance(sample, list) and sample and all(isinstance(part, int | float) for part in sample):
        return torch.tensor(sample)
    if isinstance(sample, tuple | list):
        return [_as_tensors(part) for part in sample]
    return torch.from_numpy(sample) if isinstance(sample, np.ndarray) and sample.dtype.kind in "biuf" else sample


_current: Probe | None = None


def set_current(probe: Probe) -> None:
    """Let `probe()` give this one, in a process of the checker."""
    global _current
    _current = probe


def probe(*, micro_batch: int = 1, accumulation: int = 1, epochs: int = 1, seed: int = 0, num_workers: int = 1, rank: int = 0) -> Probe:
    """The checker's probe, in a script that it runs; elsewhere one that holds these settings, so that the same script trains as ever.

    >>> probe(micro_batch=8, accumulation=4).global_batch
    32
    """
    if _current is not None:
        return _current
    arrangement = Arrangement(num_workers, accumulation)
    settings = Setup(arrangement, micro_batch * accumulation * num_workers, 0, epochs=epochs, float64=False, seed=seed)
    return Probe(settings, rank, checked=False)
