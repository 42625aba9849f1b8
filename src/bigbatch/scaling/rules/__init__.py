"""One file a rule: which fields change with the batch, to what, and why."""
