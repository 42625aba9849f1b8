"""Rendezvous, choice of backends, and heartbeats. Imports nothing else of `comm`."""
