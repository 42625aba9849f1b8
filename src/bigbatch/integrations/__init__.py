"""Thin adapters to the loops of others, each imported by whoever uses it: `bigbatch.integrations.transformers`, and so on."""
