"""Optimizers for large batches, each a plain `torch.optim.Optimizer` for any loop, and the parameter groups that they want."""

from bigbatch.core.groups import param_groups
from bigbatch.optim.adamp import AdamP
from bigbatch.optim.describe_groups import GroupTable, describe_groups
from bigbatch.optim.lamb import LAMB
from bigbatch.optim.lars import LARS
from bigbatch.optim.muon import Muon
from bigbatch.optim.muon_groups import muon_groups
from bigbatch.optim.sgdp import SGDP

__all__ = ["LAMB", "LARS", "SGDP", "AdamP", "GroupTable", "Muon", "describe_groups", "muon_groups", "param_groups"]
