"""What programs that tests start find imported: see forks.py."""

import gc
import importlib

import bigbatch
import bigbatch.cli.app

LIBRARIES = [
    *("torch", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.func", "torch._dynamo"),
    *("filelock", "jinja2", "matplotlib.figure", "pydantic", "pytest", "safetensors.torch", "scipy.optimize", "scipy.stats"),
    *("sklearn.datasets", "tomli_w", "torch.utils.tensorboard"),
]
for name in LIBRARIES:
    importlib.import_module(name)
for name in bigbatch.__all__:
    getattr(bigbatch, name)
gc.freeze()  # no program collects as garbage what was there before it
