"""The clock of a run: samples and updates. Epochs are derived, micro-batches and ranks never tick it."""

from typing import NamedTuple

from bigbatch.core.checks import check_positive


class Clock(NamedTuple):
    """How far a run has come.

    A schedule reads the clock *before* an update: at update 0 it stands at zero samples.
    """

    samples: int = 0  # training samples consumed so far, over all workers
    updates: int = 0  # optimizer updates made so far

    def crossed(self, before: "Clock", every_samples: float) -> bool:
        """Whether a multiple of so many samples lies between an earlier clock and this one.

        >>> Clock(100, 2).crossed(Clock(50, 1), every_samples=75)
        True
        """
        return self.samples // every_samples > before.samples // every_samples

    def after(self, num_samples: int) -> "Clock":
        """The clock after one more update of `num_samples` samples.

        Raises:
            UserError: If `num_samples` is not positive.

        >>> Clock().after(128).after(64)
        Clock(samples=192, updates=2)
        """
        check_positive("num_samples", num_samples)
        return Clock(self.samples + num_samples, self.updates + 1)

    def epochs(self, num_train_samples: int) -> float:
        """Passes over the training set so far.

        >>> Clock(samples=150).epochs(100)
        1.5
        """
        return self.samples / num_train_samples
