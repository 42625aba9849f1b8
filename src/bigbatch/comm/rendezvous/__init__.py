"""How workers find each other, agree on backends, and notice that one is lost. Imports nothing else of `comm`."""
