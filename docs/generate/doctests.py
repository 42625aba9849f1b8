"""Doctests in docstrings become blocks of code on the site; as plain text, lists in their results would be read as links."""

import re

import griffe

DOCTEST = re.compile(r"^( *)>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)


class FencedDoctests(griffe.Extension):
    """Called by mkdocstrings for every object that has a docstring."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Fence each doctest, up to the next empty line."""
        if obj.docstring is not None:
            obj.docstring.value = DOCTEST.sub(lambda found: f"```pycon\n{found.group()}\n```", obj.docstring.value)
