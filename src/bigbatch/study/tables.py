"""A table for the terminal, and quantities in words, for what studies say."""

import math
from typing import NamedTuple

BYTES = (("kB", 1e3, 1e5), ("MB", 1e6, 1e9), ("GB", 1e9, 1e12), ("TB", 1e12, math.inf))


class Table(NamedTuple):
    """A table for the terminal."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    numbers: set[str]  # columns that are aligned to the right
    spare: tuple[str, ...] = ()  # columns that a narrow terminal leaves out, the last first


def in_time(seconds: float) -> str:
    """Seconds in three digits and a unit.

    >>> in_time(0.00012), in_time(0.1), in_time(250), in_time(9000)
    ('0.12 ms', '100 ms', '250 s', '2.5 h')
    """
    for unit, size, limit in (("ms", 1e-3, 1.0), ("s", 1.0, 1000.0)):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 3600:.3g} h" if seconds < 3.6e6 else f"{seconds / 3600:,.0f} h"


def in_bytes(number: float) -> str:
    """Bytes in three digits and a unit.

    >>> in_bytes(0.0), in_bytes(4200.0), in_bytes(130e3), in_bytes(13.25e6), in_bytes(4e9), in_bytes(8.19e12)
    ('0 kB', '4.2 kB', '0.13 MB', '13.2 MB', '4 GB', '8.19 TB')
    """
    unit, size = next((unit, size) for unit, size, limit in BYTES if number < limit)
    return f"{number / size:.3g} {unit}"


def in_figures(number: float, decimals: int | None = None) -> str:
    """Three digits at least, without an exponent above one; below 1,000 so many decimals, if given.

    >>> in_figures(0.0123), in_figures(1234.5), in_figures(2.6249, 2)
    ('0.0123', '1,234', '2.62')
    """
    if number >= 1000:
        return f"{number:,.0f}"
    return f"{number:.3g}" if decimals is None else f"{number:.{decimals}f}"
