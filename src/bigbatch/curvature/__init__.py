"""How the loss bends: products with the Hessian without the matrix, and what they say."""

from bigbatch.curvature.landscape.adaptive_sharpness import adaptive_sharpness
from bigbatch.curvature.landscape.path import Path, path
from bigbatch.curvature.landscape.sam_sharpness import SAMSharpness, sam_sharpness
from bigbatch.curvature.landscape.sharpness import Sharpness, keskar_sharpness
from bigbatch.curvature.products.gauss_newton import GaussNewton
from bigbatch.curvature.products.hessian import Hessian
from bigbatch.curvature.products.hvp import hvp
from bigbatch.curvature.products.operator import Dense, Operator
from bigbatch.curvature.spectrum.lanczos import Eigenpairs, top_eigenvalues
from bigbatch.curvature.spectrum.spectral_density import SpectralDensity, spectral_density
from bigbatch.curvature.spectrum.trace import TraceEstimate, trace

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
