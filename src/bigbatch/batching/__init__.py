"""What sets the next global batch: a paper a file, each a rule that can be used alone. Nothing here imports torch."""

from bigbatch.batching.absa import ABSA
from bigbatch.batching.adabatch import AdaBatch
from bigbatch.batching.adascale import AdaScale
from bigbatch.batching.batch_steps import BatchSteps
from bigbatch.batching.cabs import CABS
from bigbatch.batching.decision import BatchAndRate, BatchRule, Bounds, Proposal, UpdateMeasurement, decide
from bigbatch.batching.divebatch import DiveBatch
from bigbatch.batching.goodput import Goodput
from bigbatch.batching.increase_batch import IncreaseBatch
from bigbatch.batching.inner_product_test import InnerProductTest
from bigbatch.batching.late_switch import LateSwitch
from bigbatch.batching.noise_scale import NoiseScaleRule
from bigbatch.batching.norm_test import NormTest
from bigbatch.batching.ramp import Ramp
from bigbatch.batching.seesaw import Seesaw
from bigbatch.batching.simigrad import SimiGrad
from bigbatch.batching.updates import Update, Updates

__all__ = [
    "ABSA",
    "CABS",
    "AdaBatch",
    "AdaScale",
    "BatchAndRate",
    "BatchRule",
    "BatchSteps",
    "Bounds",
    "DiveBatch",
    "Goodput",
    "IncreaseBatch",
    "InnerProductTest",
    "LateSwitch",
    "NoiseScaleRule",
    "NormTest",
    "Proposal",
    "Ramp",
    "Seesaw",
    "SimiGrad",
    "Update",
    "UpdateMeasurement",
    "Updates",
    "decide",
]
