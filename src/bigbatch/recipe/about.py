"""What the shipped recipes need, and how long a run of each takes: named/about.toml."""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def _about() -> dict[str, Any]:
    return tomllib.loads((files("bigbatch.recipe") / "named" / "about.toml").read_text())


def needs_of(name: str) -> str:
    """The data that a shipped recipe needs, in words."""
    return str(_about()["needs"][name.partition("/")[0]])


def how_to_get() -> dict[str, str]:
    """How to come by each kind of data."""
    return dict(_about()["how"])


def seconds_of(name: str) -> float:
    """Of a run on two shared cores, about."""
    return float(_about()["seconds"][name])
