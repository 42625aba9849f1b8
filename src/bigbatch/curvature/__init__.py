"""How the loss bends: products with the Hessian without the matrix, and what they say."""

from bigbatch.curvature.gauss_newton import GaussNewton
from bigbatch.curvature.hessian import Hessian
from bigbatch.curvature.hvp import hvp
from bigbatch.curvature.lanczos import Eigenpairs, top_eigenvalues
from bigbatch.curvature.operator import Dense, Operator
from bigbatch.curvature.spectral_density import SpectralDensity, spectral_density
from bigbatch.curvature.trace import TraceEstimate, trace

__all__ = [
    "Dense",
    "Eigenpairs",
    "GaussNewton",
    "Hessian",
    "Operator",
    "SpectralDensity",
    "TraceEstimate",
    "hvp",
    "spectral_density",
    "top_eigenvalues",
    "trace",
]
