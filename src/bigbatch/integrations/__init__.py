"""Thin adapters to other people's trainers and trackers, imported only on demand; each needs an extra of its own."""
