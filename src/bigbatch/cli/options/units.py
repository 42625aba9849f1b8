"""Quantities with a unit: 50Gbit, 20ms, 100MB."""

import re

from bigbatch.core.checks import UserError

BYTES = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
RATES = {"bit": 0.125, "kbit": 125.0, "Mbit": 125e3, "Gbit": 125e6, "Tbit": 125e9, **BYTES}  # each a second; "/s" may follow


def num_bytes(option: str, text: str) -> float:
    """Bytes of "100MB".

    Raises:
        UserError: If it is anything else.
    """
    return _quantity(option, text, BYTES, "100MB or 1.5GB")


def seconds(option: str, text: str) -> float:
    """Seconds of "50us".

    Raises:
        UserError: If it is anything else.
    """
    return _quantity(option, text, SECONDS, "50us, 20ms or 1.5s")


def bytes_per_second(option: str, text: str) -> float:
    """Bytes per second of "50Gbit".

    Raises:
        UserError: If it is anything else.
    """
    return _quantity(option, text.removesuffix("/s"), RATES, "50Gbit, 100Mbit or 6GB")


def _quantity(option: str, text: str, units: dict[str, float], such: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+)\s*([A-Za-zµ]*)\s*", text)
    if found is None:
        raise UserError(f"{option} {text}: must be a number and a unit, such as {such}")
    number, unit = found.groups()
    if not unit:
        raise UserError(f"{option} {text}: has no unit; write one of {', '.join(units)} behind the number, such as {such}")
    if unit not in units:
        raise UserError(f"{option} {text}: unknown unit {unit!r}; write one of {', '.join(units)}, such as {such}")
    return float(number) * units[unit]
