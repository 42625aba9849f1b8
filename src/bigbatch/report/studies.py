"""The studies that leave one file in a folder: which file, which command, and what draws it."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bigbatch.core.storage.reading import exists
from bigbatch.report.blocks import Section, section_of


class Kind(NamedTuple):
    """One kind of study. Its module is imported when there is such a study: some need no torch."""

    title: str
    command: str
    module: str
    section: str  # function of the module: stored study to section
    write: str  # function of the module: stored study and folder to the path of a plot


KINDS = {
    "noise.json": Kind("noise scale", "bigbatch noise", "noise", "noise_section", "write_noise_plot"),
    "critical.json": Kind("critical batch", "bigbatch critical", "trade_off", "critical_section", "write_trade_off"),
    "branches.json": Kind("critical batch, by branches", "bigbatch critical --branch", "branches", "branches_section", "write_branches"),
    "steps.json": Kind("steps to a target", "bigbatch steps", "steps", "steps_section", "write_steps"),
    "simulate.json": Kind("simulation", "bigbatch simulate", "simulate", "simulation_section", "write_simulation"),
}


def study_sections(folder: Path) -> list[Section]:
    """Of all such studies in a folder.

    Raises:
        InputError: If a file of one is damaged.
    """
    found = ((folder / name, kind) for name, kind in KINDS.items() if exists(folder / name))
    return [section_of(path, kind.command, getattr(_module(kind), kind.section)) for path, kind in found]


def write_plot_of(name: str, stored: Mapping[str, Any], folder: Path) -> Path:
    """Write a study's plot as a file of its own, by the name of the study's file; returns its path."""
    path: Path = getattr(_module(KINDS[name]), KINDS[name].write)(stored, folder)
    return path


def _module(kind: Kind) -> Any:
    return importlib.import_module(f"bigbatch.report.{kind.module}")
