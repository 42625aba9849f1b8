"""What was run, and what came of it."""
