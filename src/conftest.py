"""Kernels can only be imported where triton can be installed: Linux on x86_64."""

import importlib.util

KERNELS = [
    "layers/group_kernels",
    *(f"optim/kernels/{name}" for name in ("common", "lars", "lamb", "projected", "decide", "row_tiles", "row_moments", "row_step")),
]
collect_ignore_glob = [] if importlib.util.find_spec("triton") else [f"bigbatch/{name}.py" for name in KERNELS]
