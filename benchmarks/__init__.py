"""Scripts that measure, a question each."""
