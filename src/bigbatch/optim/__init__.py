"""Optimizers and what they need. The update rules of this version are torch's own: SGD, Adam, AdamW."""

from bigbatch.core.groups import param_groups

__all__ = ["param_groups"]
