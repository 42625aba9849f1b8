"""Kernels can only be imported where triton can be installed: Linux on x86_64."""

import importlib.util

collect_ignore_glob = (
    []
    if importlib.util.find_spec("triton")
    else [
        f"bigbatch/optim/kernels/{n}.py" for n in ("common", "lars", "lamb", "projected", "decide", "row_tiles", "row_moments", "row_step")
    ]
)
