"""One case: the workers, their links, the model and what a step computes. `strategies` says what an update of it costs."""

import math
from dataclasses import dataclass

from bigbatch.core.checks import UserError, check_fraction, check_positive, unknown
from bigbatch.simulate.all_reduce import ALL_REDUCES, FASTEST, FREE, all_reduce
from bigbatch.simulate.alpha_beta import AlphaBeta
from bigbatch.simulate.compression import POWERSGD_ALL_REDUCES
from bigbatch.simulate.link import Link
from bigbatch.simulate.overlap import Bucket, even_buckets
from bigbatch.simulate.straggler import slowest

BUCKET_BYTES = 25 * 2.0**20  # DistributedDataParallel's own


@dataclass(frozen=True)
class Case:
    """What decides how long an update takes.

    Attributes:
        workers: How many compute.
        link: Between hosts.
        model_bytes: Of the gradients, and of the weights; 4 a value where values are rounded or chosen.
        step_s: Seconds of a worker's forward and backward pass over its local batch, and of its update; nothing exchanged.
        backward_share: Of these, in the backward pass. Twice the forward pass is usual.
        spread: Standard deviation of a worker's `step_s` over its mean, from update to update; 0 for none.
        workers_per_host: Workers that share a link.
        host_link: Between workers of a host; None where what they say to each other costs nothing.
        bucket_bytes: Gradients that are exchanged together, at most.
        buckets: The buckets themselves, where they are known; `bucket_bytes` is not looked at then.
        streams: All-reduces in flight at most: 1 (NCCL) or 2 (gloo).
        all_reduce: "ring", "gloo_ring", "halving_doubling" or "tree", or "fastest", for the strategies that don't name one.
        overlap: Whether gossip exchanges while it computes; else after.
        local_steps: Updates between two averages of local SGD.
        outer_period: H, updates between two outer steps of DiLoCo and its like.
        fragments: F, pieces of the weights that Streaming DiLoCo exchanges one after the other, each once in H updates.
        overlap_updates: tau, updates that an exchange of Streaming DiLoCo may take before its result is applied.
        servers: Hosts that serve parameters, beside those of the workers.
        powersgd_ratio: Bytes of the gradients over bytes that PowerSGD sends.
        powersgd_all_reduces: Of an update: of vectors, P and Q; 2 for a model without vectors.
        compress_s: Seconds that PowerSGD, top-k, rounding or SparseLoCo takes to compress and restore.
        top_k_share: Share of the gradients that top-k sends.
        lost_every_s: Mean seconds from one loss of a worker to its next; None where none is lost.
        recovery_s: Seconds from a loss until work goes on: noticed, replaced, weights fetched.

    Raises:
        UserError: If a value is out of range.
    """

    workers: int
    link: Link
    model_bytes: float
    step_s: float
    backward_share: float = 2 / 3
    spread: float = 0.0
    workers_per_host: int = 1
    host_link: Link | None = None
    bucket_bytes: float = BUCKET_BYTES
    buckets: tuple[Bucket, ...] = ()
    streams: int = 1
    all_reduce: str = FASTEST
    overlap: bool = True
    local_steps: int = 8
    outer_period: int = 30
    fragments: int = 2
    overlap_updates: int = 1
    servers: int = 1
    powersgd_ratio: float = 72.0
    powersgd_all_reduces: int = POWERSGD_ALL_REDUCES
    compress_s: float = 0.0
    top_k_share: float = 0.01
    lost_every_s: float | None = None
    recovery_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("model_bytes", "step_s", "backward_share", "bucket_bytes", "powersgd_ratio"):
            check_positive(name, getattr(self, name))
        counts = ("workers", "workers_per_host", "streams", "local_steps", "servers", "powersgd_all_reduces", "outer_period", "fragments")
        for name in counts:
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: must be 1 or more; give how many there are")
        if self.overlap_updates < 0:
            raise UserError(f"overlap_updates = {self.overlap_updates}: must be 0 or more; 0 waits for each exchange")
        if self.lost_every_s is not None:
            check_positive("lost_every_s", self.lost_every_s)
        if not 0 <= self.recovery_s < math.inf:
            raise UserError(f"recovery_s = {self.recovery_s}: must be zero or above; give the seconds from a loss until work goes on")
        check_fraction("backward_share", self.backward_share)
        check_fraction("top_k_share", self.top_k_share)
        if not 0 <= self.spread < math.inf:
            raise UserError(f"spread = {self.spread}: must be zero or above; give standard deviation over mean, such as 0.05")
        if not 0 <= self.compress_s < math.inf:
            raise UserError(f"compress_s = {self.compress_s}: must be zero or above; give what compressing takes")
        if self.all_reduce not in (*ALL_REDUCES, FASTEST):
            raise UserError(unknown("all-reduce", self.all_reduce, [*ALL_REDUCES, FASTEST]))

    @property
    def hosts(self) -> int:
        """Hosts that hold the workers."""
        return math.ceil(self.workers / self.workers_per_host)

    @property
    def in_host(self) -> int:
        """Workers of a host."""
        return min(self.workers_per_host, self.workers)

    @property
    def slowest_s(self) -> float:
        """Expected seconds of the slowest worker's step."""
        return self.step_s * slowest(self.workers, self.spread)

    @property
    def host_s(self) -> float:
        """Expected seconds of the slowest worker of a host."""
        return self.step_s * slowest(self.in_host, self.spread)

    @property
    def gradients(self) -> tuple[Bucket, ...]:
        """The buckets that are exchanged."""
        return self.buckets or tuple(even_buckets(self.model_bytes, self.bucket_bytes))

    def inside(self, num_bytes: float) -> AlphaBeta:
        """Cost of an all-reduce among the workers of a host, by whatever is fastest there."""
        return FREE if self.host_link is None else all_reduce(FASTEST, self.host_link, self.in_host, num_bytes)

    def between(self, num_bytes: float, name: str | None = None) -> AlphaBeta:
        """Cost of an all-reduce between hosts, by that of the name, or the case's own."""
        return all_reduce(name or self.all_reduce, self.link, self.hosts, num_bytes)

    def all_reduced(self, num_bytes: float, name: str | None = None) -> AlphaBeta:
        """Cost of an all-reduce among all workers: inside the hosts, and between them."""
        inside, between = self.inside(num_bytes), self.between(num_bytes, name)
        return AlphaBeta(inside.alpha_s + between.alpha_s, inside.beta_s_per_byte + between.beta_s_per_byte)
