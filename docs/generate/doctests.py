"""Docstrings on the site: doctests become blocks of code, and the cards of modules (paper, formula, units) stay as they are written.

As plain text, lists in the results of doctests would be read as links, and the lines of a formula would run together.
"""

import re

import griffe

DOCTEST = re.compile(r"^( *)>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)
CARD = re.compile(r"^(?:Paper|Formula|Test|Units):", re.MULTILINE)


class FencedDoctests(griffe.Extension):
    """Called by mkdocstrings for every object that has a docstring."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Fence a module's card as a whole; elsewhere each doctest, up to the next empty line."""
        if obj.docstring is None:
            return
        if obj.is_module and CARD.search(obj.docstring.value):
            obj.docstring.value = f"```text\n{obj.docstring.value}\n```"
        else:
            obj.docstring.value = DOCTEST.sub(lambda found: f"```pycon\n{found.group()}\n```", obj.docstring.value)
