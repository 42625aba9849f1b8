"""What a person sees while a run goes on. Imports nothing else of `train`."""
