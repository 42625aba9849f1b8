"""Layers and losses made fit to be differentiated twice."""
