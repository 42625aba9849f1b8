"""The sections of a recipe: their fields, units, bounds and defaults."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bigbatch.recipe.base import Count, Fraction, Momentum, NotNegative, Positive, Section, check_inputs
from bigbatch.recipe.batch_rules import BATCH_RULES, AnyBatchRule

Betas = tuple[Momentum, Momentum]
MuonGroups = Annotated[dict[str, Literal["muon", "adam"]], Field(min_length=1)]
DecayGroups = Annotated[dict[str, Literal["weights", "norms_and_biases"]], Field(min_length=1)]


class _Optimizer(Section):
    lr: Positive  # peak learning rate
    weight_decay: NotNegative = 0.0  # in the optimizer's own unit
    clip_norm: Positive | None = None  # bound on the global norm of the mean gradient of an update


class _UniformDecay(_Optimizer):
    decay_norms_and_biases: bool = True  # torch's habit; Goyal et al. switch it off
    groups: DecayGroups | None = None  # patterns of parameter names to what they count as


class SGD(_UniformDecay):
    """torch.optim.SGD: the rate stays outside the momentum buffer."""

    name: Literal["sgd"] = "sgd"
    momentum: Momentum = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov = true needs momentum > 0")
        return self


class Adam(_UniformDecay):
    """torch.optim.Adam: weight decay is added to the gradient."""

    name: Literal["adam"] = "adam"
    betas: Betas = (0.9, 0.999)
    eps: Positive = 1e-8


class AdamW(_UniformDecay):
    """torch.optim.AdamW: weight decay is applied to the weights, times the rate."""

    name: Literal["adamw"] = "adamw"
    betas: Betas = (0.9, 0.999)
    eps: Positive = 1e-8


class AdamP(_UniformDecay):
    """bigbatch.optim.AdamP."""

    name: Literal["adamp"] = "adamp"
    betas: Betas = (0.9, 0.999)
    eps: Positive = 1e-8
    delta: NotNegative = 0.1
    wd_ratio: NotNegative = 0.1


class SGDP(_UniformDecay):
    """bigbatch.optim.SGDP."""

    name: Literal["sgdp"] = "sgdp"
    momentum: Momentum = 0.0
    nesterov: bool = False
    delta: NotNegative = 0.1
    wd_ratio: NotNegative = 0.1


class _LayerWise(_Optimizer):
    decay_norms_and_biases: bool = False
    adapt_norms_and_biases: bool = False
    groups: DecayGroups | None = None  # patterns of parameter names to what they count as


class LARS(_LayerWise):
    """bigbatch.optim.LARS."""

    name: Literal["lars"] = "lars"
    momentum: Momentum = 0.9
    nesterov: bool = False
    trust_coefficient: Positive = 0.001
    lr_in_momentum: bool = True


class LAMB(_LayerWise):
    """bigbatch.optim.LAMB."""

    name: Literal["lamb"] = "lamb"
    betas: Betas = (0.9, 0.999)
    eps: Positive = 1e-6
    bias_correction: bool = True


class Muon(_Optimizer):
    """bigbatch.optim.Muon: `lr`, `momentum` and `weight_decay` are of the orthogonalised matrices, `adam_lr` is of all else."""

    name: Literal["muon"] = "muon"
    adam_lr: Positive
    momentum: Momentum = 0.95
    nesterov: bool = True
    betas: Betas = (0.9, 0.95)
    eps: Positive = 1e-8
    groups: MuonGroups | None = None  # patterns of parameter names to who updates them, where `bigbatch plan --groups` shows another


AnyOptimizer = Annotated[SGD | Adam | AdamW | SGDP | AdamP | LARS | LAMB | Muon, Field(discriminator="name")]


class NoWarmup(Section):
    """Start at the peak rate."""

    kind: Literal["none"] = "none"


class GradualWarmup(Section):
    """Straight line from `start_factor` times the peak rate to the peak rate."""

    kind: Literal["gradual"] = "gradual"
    epochs: NotNegative
    start_factor: Fraction = 0.0


class ConstantWarmup(Section):
    """`factor` times the peak rate, then a jump to it."""

    kind: Literal["constant"] = "constant"
    epochs: NotNegative
    factor: Fraction


Open = Annotated[float, Field(gt=0, lt=1)]


class AutoWU(Section):
    """The rate grows exponentially until the loss turns, at most to the peak; goes back to where the loss was lowest; and decays."""

    kind: Literal["autowu"] = "autowu"
    grow_from: Open = 1e-5  # of the peak rate
    share: Open = 0.5  # of the run: the longest warm-up
    decay: Literal["cosine", "constant_cosine"] = "cosine"  # from there to the end; in the last fifth of the run only
    tests: Count = 120  # in the whole run
    patience: Count = 3  # tests in a row that must find a minimum
    confidence: Open = 0.95
    return_to_minimum: bool = False  # ours: with the rate, weights and optimizer state go back; also where the loss is not finite


class ConstantDecay(Section):
    """The peak rate throughout."""

    kind: Literal["constant"] = "constant"


class StepDecay(Section):
    """Times `factor` at each milestone."""

    kind: Literal["step"] = "step"
    milestones: Annotated[tuple[Positive, ...], Field(min_length=1)]  # epochs
    factor: Fraction = 0.1

    @model_validator(mode="after")
    def _milestones_ascend(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones = {list(self.milestones)} must ascend; sort them")
        return self


class PolynomialDecay(Section):
    """(1 - t/T)^power from the end of the warm-up to the end of the run, down to `final_factor`."""

    kind: Literal["polynomial"] = "polynomial"
    power: Positive = 2.0
    final_factor: Fraction = 0.0


class CosineDecay(Section):
    """Half a cosine from the end of the warm-up to the end of the run, down to `final_factor`."""

    kind: Literal["cosine"] = "cosine"
    final_factor: Fraction = 0.0


class LinearDecay(Section):
    """Straight line from the end of the warm-up to the end of the run, down to `final_factor`."""

    kind: Literal["linear"] = "linear"
    final_factor: Fraction = 0.0


class WSDDecay(Section):
    """Warm-up-stable-decay: the peak rate, and a decay over the last part of the run, down to `final_factor`."""

    kind: Literal["wsd"] = "wsd"
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2  # of the run, warm-up included
    shape: Literal["sqrt", "linear", "cosine"] = "sqrt"  # sqrt: 1 - sqrt(t)
    final_factor: Fraction = 0.0


AnyWarmup = Annotated[NoWarmup | GradualWarmup | ConstantWarmup | AutoWU, Field(discriminator="kind")]
AnyDecay = Annotated[ConstantDecay | StepDecay | PolynomialDecay | CosineDecay | LinearDecay | WSDDecay, Field(discriminator="kind")]


class Schedule(Section):
    """Learning rate = optimizer.lr x warmup x decay, both pure functions of the samples consumed, but for AutoWU, which sees losses.

    "sequential": the rate warms up to its peak, then decays over what is left of the run. "product": the decay runs from the first
    sample on, also during the warm-up, so the peak is never reached. Milestones of a step decay count from the start of the run in both.
    """

    warmup: AnyWarmup = NoWarmup()
    decay: AnyDecay = ConstantDecay()
    combine: Literal["sequential", "product"] = "sequential"

    @model_validator(mode="after")
    def _autowu_decays_itself(self) -> Self:
        if isinstance(self.warmup, AutoWU) and self.decay.kind != "constant":
            raise ValueError(
                f'decay.kind = "{self.decay.kind}" with warmup.kind = "autowu": has a decay of its own, from where its warm-up ends; set '
                'schedule.decay.kind = "constant", and choose by schedule.warmup.decay'
            )
        return self


class Batch(Section):
    """How many samples go together, and for what."""

    global_batch: Count  # one update, over all workers
    ghost_batch: Count | Literal["global"] | None = None  # one normalisation group; None: the model has no batch norm
    micro_batch: Count | Literal["auto"] = "auto"  # one forward pass; "auto" measures the fastest; never changes the update
    noise_batch: Count | None = None  # multiplicative noise that makes the gradient as noisy as of so many samples; None: none
    rule: AnyBatchRule | None = None  # sets global_batch anew while the run goes on


class Budget(Section):
    """Length of the run, in exactly one unit."""

    epochs: Annotated[float, Field(gt=0, le=1e6)] | None = None
    samples: Count | None = None
    updates: Count | None = None

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        given = [name for name in ("epochs", "samples", "updates") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of epochs, samples, updates; got {' and '.join(given) or 'none'}")
        return self


class Adversarial(Section):
    """Every update trains on adversarial examples of its samples too: concurrent adversarial learning."""

    eps: float  # size of the step, as a part of the data's range: 8 of 255 grey levels are 0.03
    tau: int = 1  # updates that the weights which examples are made from are old; 0: DisAdv, one after the other
    loss: Literal["sum", "mean"] | None = None  # clean and adversarial loss; if left out, "sum" with lars (the paper's), else "mean"
    share: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the adversarial loss; 1: as much as the clean one
    full_until: Fraction = 1.0  # part of the run after which the share falls
    off_at: Fraction = 1.0  # part of the run at which it is zero
    makers: Literal["self", "ranks", "stream"] = "self"  # of examples: the trainer; half of several workers; a second stream of its GPU
    low: float | None = None  # least and
    high: float | None = None  # largest value of an input; if left out, those of the training set, of each channel of images

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not 0 < self.eps <= 1:
            raise ValueError(f"eps = {self.eps:g}: must be above zero and at most 1, all of the data's range; 8 of 255 levels are 0.03")
        if self.tau < 0:
            raise ValueError(f"tau = {self.tau}: weights of updates to come are not known; set 1, or 0 for DisAdv")
        if self.off_at < self.full_until:
            raise ValueError(f"off_at = {self.off_at:g}: must not come before full_until = {self.full_until:g}; set both")
        if self.makers != "self" and self.tau == 0:
            raise ValueError(
                f'makers = "{self.makers}" with tau = 0: examples from the newest weights are waited for, whoever makes them; set tau = 1, '
                'or makers = "self"'
            )
        check_inputs(self.low, self.high)
        return self


class Augmentation(Section):
    """Images are shifted and mirrored at random, anew in every epoch."""

    padding: Annotated[int, Field(ge=0)] = 0  # pixels around an image, of which a part of the image's size is cut out
    flip: bool = False  # left and right, every other time

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not self.padding and not self.flip:
            raise ValueError("padding = 0 and flip = false: changes nothing; set one of them, or leave the section out")
        return self


class Curvature(Section):
    """The top of the Hessian's spectrum is looked at on the way, and recorded; it changes no bit of the run, and costs time."""

    every_updates: Count  # from one look to the next; the last update is always followed by one
    eigenvalues: Count = 1  # from the largest
    samples: Count = 512  # of the training set, the same each time; all of a smaller one
    tolerance: Positive = 1e-3  # of an eigenvalue's residual |Hv - lambda v| / |lambda|; at 1e-2 a lower one may be taken for the top
    trace: Literal[False] | Positive = False  # relative standard error to which the trace is estimated; false: not at all


class Float16(Section):
    """Gradients are exchanged in float16, or in bfloat16 where the backend can."""

    kind: Literal["fp16", "bf16"] = "fp16"


class PowerSGD(Section):
    """Gradients are exchanged as matrices of low rank, with error feedback."""

    kind: Literal["powersgd"] = "powersgd"
    rank: Count = 4
    start_updates: Annotated[int, Field(ge=2)] = 10


class TopK(Section):
    """The largest gradients are exchanged, with error feedback."""

    kind: Literal["top_k"] = "top_k"
    share: Annotated[float, Field(gt=0, le=1)] = 0.01


class _Comm(Section):
    label_skew: Fraction = 0.0  # share of the data that lies with workers by label; 0: anyone's, anew in each epoch


class AllReduce(_Comm):
    """Every update is one step along the mean gradient of all workers."""

    kind: Literal["all_reduce"] = "all_reduce"
    compression: Annotated[Float16 | PowerSGD | TopK, Field(discriminator="kind")] | None = None
    bucket_mb: Positive | None = None  # gradients that are sent together; by default a twelfth of them


class LocalSGD(_Comm):
    """Workers take steps of their own and average their weights every `period` updates."""

    kind: Literal["local_sgd"] = "local_sgd"
    period: Count = 8  # updates
    start_updates: Annotated[int, Field(ge=0)] = 0  # of all-reduce, before
    momentum: Literal["average", "keep", "reset"] = "average"
    group_size: Count = 1  # workers that average among themselves more often
    group_period: Count | None = None  # updates


class Gossip(_Comm):
    """Workers take steps of their own and average their weights with their neighbours'."""

    kind: Literal["gossip"] = "gossip"
    method: Literal["d_psgd", "dmsgd", "decentlam"] = "d_psgd"
    topology: Literal[
        "ring", "torus", "complete", "star", "exponential", "one_peer_exponential", "symmetric_exponential", "random_match"
    ] = "ring"


class FullyShard(_Comm):
    """As all-reduce, with weights and optimizer state spread over the workers."""

    kind: Literal["fully_shard"] = "fully_shard"


class ParameterServer(_Comm):
    """Servers hold the weights; workers pull them, and push gradients as they get ready."""

    kind: Literal["parameter_server"] = "parameter_server"
    mode: Literal["synchronous", "asynchronous"] = "synchronous"
    staleness_bound: Annotated[int, Field(ge=0)] | None = None  # updates that a gradient may be late by; asynchronous: 16 if left out
    gradients_per_update: Count | None = None  # if left out, synchronous: one a worker but for backup workers; asynchronous: 1
    backup_workers: Annotated[int, Field(ge=0)] = 0  # synchronous: workers beyond those that an update waits for
    damping: Literal["none", "inverse", "inverse_plus_one"] = "none"  # asynchronous: of stale gradients
    reduction: Literal["mean", "sum"] = "mean"  # of an update's gradients; "sum" takes the rate that gives the same step
    servers: Count = 1  # over which the parameters are spread

    @model_validator(mode="after")
    def _fits_the_mode(self) -> Self:
        if self.label_skew:
            raise ValueError(f"label_skew = {self.label_skew:g}: samples go to whoever is free, and lie with nobody; leave it out")
        if self.mode == "asynchronous":
            if self.staleness_bound == 0:
                raise ValueError(
                    'staleness_bound = 0: no gradient could ever be late, which is mode = "synchronous"; set that, or a bound of 1 or more'
                )
            if self.backup_workers:
                raise ValueError(
                    f'backup_workers = {self.backup_workers}: asynchronous updates wait for none; leave it out, or set mode = "synchronous"'
                )
        elif self.staleness_bound or self.damping != "none":
            field = f"staleness_bound = {self.staleness_bound}" if self.staleness_bound else f"damping = {self.damping!r}"
            raise ValueError(f'{field}: nothing is stale in synchronous updates; set mode = "asynchronous", or leave it out')
        return self


AnyComm = Annotated[AllReduce | LocalSGD | Gossip | FullyShard | ParameterServer, Field(discriminator="kind")]

TAGS = {
    "optimizer": "name",
    "schedule.warmup": "kind",
    "schedule.decay": "kind",
    "batch.rule": "kind",
    "comm": "kind",
    "comm.compression": "kind",
}
"""The field that says which kind of a section is meant."""

KINDS: dict[str, dict[str, type[Section]]] = {
    "optimizer": {"sgd": SGD, "adam": Adam, "adamw": AdamW, "sgdp": SGDP, "adamp": AdamP, "lars": LARS, "lamb": LAMB, "muon": Muon},
    "schedule.warmup": {"none": NoWarmup, "gradual": GradualWarmup, "constant": ConstantWarmup, "autowu": AutoWU},
    "schedule.decay": {
        "constant": ConstantDecay,
        "step": StepDecay,
        "polynomial": PolynomialDecay,
        "cosine": CosineDecay,
        "linear": LinearDecay,
        "wsd": WSDDecay,
    },
    "batch.rule": BATCH_RULES,
    "comm": {
        "all_reduce": AllReduce,
        "local_sgd": LocalSGD,
        "gossip": Gossip,
        "fully_shard": FullyShard,
        "parameter_server": ParameterServer,
    },
    "comm.compression": {"fp16": Float16, "bf16": Float16, "powersgd": PowerSGD, "top_k": TopK},
}
