"""Optimizers for large batches, each a plain `torch.optim.Optimizer` for any loop, and the parameter groups that they want.

Names are imported on first use: the sections of torch's own optimizers, which recipes need, cost no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigbatch.core.tensors.groups import param_groups
    from bigbatch.optim.adamp import AdamP
    from bigbatch.optim.group_table import GroupTable, describe_groups
    from bigbatch.optim.lamb import LAMB
    from bigbatch.optim.lars import LARS
    from bigbatch.optim.muon.muon import Muon
    from bigbatch.optim.muon.muon_split import muon_groups
    from bigbatch.optim.muon.soap_muon import SoapMuon, soap_muon_groups
    from bigbatch.optim.sgdp import SGDP

_HOMES = {
    "LAMB": "bigbatch.optim.lamb",
    "LARS": "bigbatch.optim.lars",
    "SGDP": "bigbatch.optim.sgdp",
    "AdamP": "bigbatch.optim.adamp",
    "GroupTable": "bigbatch.optim.group_table",
    "Muon": "bigbatch.optim.muon.muon",
    "SoapMuon": "bigbatch.optim.muon.soap_muon",
    "describe_groups": "bigbatch.optim.group_table",
    "muon_groups": "bigbatch.optim.muon.muon_split",
    "param_groups": "bigbatch.core.tensors.groups",
    "soap_muon_groups": "bigbatch.optim.muon.soap_muon",
}
__all__ = [
    "LAMB",
    "LARS",
    "SGDP",
    "AdamP",
    "GroupTable",
    "Muon",
    "SoapMuon",
    "describe_groups",
    "muon_groups",
    "param_groups",
    "soap_muon_groups",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bigbatch.optim' has no attribute {name!r}")
