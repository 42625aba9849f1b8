"""Starting the processes of a run, noticing how they end, and checking links before. Imports nothing else of `comm`."""
