"""Other libraries' optimizers, for comparison only; a test that wants one that is absent is skipped."""

import importlib
import importlib.util
import sys
import types

import pytest


def peer(module, name):
    """An optimizer class of another library.

    A package whose `__init__` needs what is not installed (timm: torchvision) is entered by the side door: its optimizers need none.
    """
    package = module.partition(".")[0]
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if package == "timm":
        for part in ("timm", "timm.optim"):
            if part not in sys.modules:
                spec = importlib.util.find_spec(part)
                stub = types.ModuleType(part)
                stub.__spec__, stub.__path__ = spec, list(spec.submodule_search_locations)
                sys.modules[part] = stub
    return getattr(importlib.import_module(module), name)
