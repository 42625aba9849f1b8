"""Pages of the site that come from the code; `hooks.py` is what mkdocs calls."""
