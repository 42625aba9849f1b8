"""Where in a run a decay has its place."""

from typing import NamedTuple

from bigbatch.schedules.compose import Schedule, delayed


class Span(NamedTuple):
    """Samples from the start of the run."""

    begin: int  # of the decay: the end of the warm-up, or 0 where both run from the first sample on
    end: int  # of the run
    epoch: int  # samples of an epoch

    @property
    def length(self) -> int:
        """Samples of the decay.

        >>> Span(begin=100, end=1000, epoch=500).length
        900
        """
        return self.end - self.begin

    def place(self, decay: Schedule) -> Schedule:
        """A decay whose own clock starts at `begin`; 1 before it."""
        return delayed(decay, self.begin) if self.begin else decay
