"""How the loss bends: products with the Hessian without the matrix, and what they say."""

from bigbatch.curvature.adaptive_sharpness import adaptive_sharpness
from bigbatch.curvature.gauss_newton import GaussNewton
from bigbatch.curvature.hessian import Hessian
from bigbatch.curvature.hvp import hvp
from bigbatch.curvature.lanczos import Eigenpairs, top_eigenvalues
from bigbatch.curvature.operator import Dense, Operator
from bigbatch.curvature.path import Path, path
from bigbatch.curvature.sam_sharpness import SAMSharpness, sam_sharpness
from bigbatch.curvature.sharpness import Sharpness, keskar_sharpness
from bigbatch.curvature.spectral_density import SpectralDensity, spectral_density
from bigbatch.curvature.trace import TraceEstimate, trace

__all__ = [
    "Dense",
    "Eigenpairs",
    "GaussNewton",
    "Hessian",
    "Operator",
    "Path",
    "SAMSharpness",
    "Sharpness",
    "SpectralDensity",
    "TraceEstimate",
    "adaptive_sharpness",
    "hvp",
    "keskar_sharpness",
    "path",
    "sam_sharpness",
    "spectral_density",
    "top_eigenvalues",
    "trace",
]
