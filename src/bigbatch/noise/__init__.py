"""What gradients say about the batch: signal, noise, and the batch beyond which more samples stop helping."""

from bigbatch.noise.branches import Branches, largest_held, local_critical_batch
from bigbatch.noise.critical_batch import fit_critical_batch, overhead
from bigbatch.noise.dual_norm import alignment, dual_noise, plug_in
from bigbatch.noise.dual_norm_monitor import DualNormMonitor
from bigbatch.noise.estimate import NoiseEstimate, estimate
from bigbatch.noise.monitor import NoiseScaleMonitor, layers_of
from bigbatch.noise.multiplicative_noise import noise_factors
from bigbatch.noise.norm_layers import norm_parameters
from bigbatch.noise.per_example import noise_of_examples
from bigbatch.noise.power_law import PowerLaw, SizedBatch, fit_power_law
from bigbatch.noise.preconditioned import Preconditioned
from bigbatch.noise.simple_noise_scale import NoiseScale, noise_of_groups, simple_noise_scale
from bigbatch.noise.weight_distance import WeightDistance, fit_log

__all__ = [
    "Branches",
    "DualNormMonitor",
    "NoiseEstimate",
    "NoiseScale",
    "NoiseScaleMonitor",
    "PowerLaw",
    "Preconditioned",
    "SizedBatch",
    "WeightDistance",
    "alignment",
    "dual_noise",
    "estimate",
    "fit_critical_batch",
    "fit_log",
    "fit_power_law",
    "largest_held",
    "layers_of",
    "local_critical_batch",
    "noise_factors",
    "noise_of_examples",
    "noise_of_groups",
    "norm_parameters",
    "overhead",
    "plug_in",
    "simple_noise_scale",
]
