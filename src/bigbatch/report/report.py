"""One self-contained HTML file for any folder: what is there, finished or not, results first."""

import warnings
from pathlib import Path

import jinja2

from bigbatch.core.checks import InputError, UserError
from bigbatch.core.storage.reading import exists, read_json, reason
from bigbatch.core.storage.writing import write_atomically
from bigbatch.core.version import __version__
from bigbatch.report.blocks import Section
from bigbatch.report.studies import study_sections, write_plot_of

REPORT, RECORD = "report.html", "record.jsonl"


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a folder: of what `bigbatch train`, `scale`, `noise`, `critical` or `simulate` left there, finished or not.

    A folder that holds none of it itself gets an index of the runs and studies below it.

    Returns:
        Path of the report.

    Raises:
        UserError: If there is no such folder, or neither it nor any below it holds a run or a study.
        InputError: If what it holds is damaged.
        OutputError: If the report can't be written.
    """
    folder = Path(folder)
    if not exists(folder) or not folder.is_dir():
        raise InputError(f"{folder}: is not a folder; give one with runs in it, such as the --out of `bigbatch train` or `scale`")
    sections = study_sections(folder)
    if exists(folder / RECORD) or any(below.is_dir() for below in folder.iterdir()) or not sections:
        sections = _of_runs(folder, sections)
    if not sections:
        raise UserError(f"{folder}: holds no run and no study, nor does a folder below it; name the --out folder of another command")
    path = folder / REPORT
    write_atomically(path, page(sections).encode(errors="replace"))
    return path


def page(sections: list[Section]) -> str:
    """The HTML of some sections."""
    loader = jinja2.PackageLoader("bigbatch.report", "templates")
    templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    leads = {section.lead for section in sections if section.lead}
    lead = leads.pop() if len(leads) == 1 else "What is in this folder."
    return templates.get_template("report.html.j2").render(sections=sections, lead=lead, version=__version__)


def leave_report(folder: Path, study: str | None = None) -> str:
    """Draw what a command measured and stored: its plot as a file of its own, and the report. Nothing measured depends on it.

    Args:
        folder: Of the command's output.
        study: File of the study, such as "noise.json", whose plot is written too.

    Returns:
        What was written, in words; empty, after a warning, if it could not be.
    """
    try:
        written = [f"report: {write_report(folder)}"]
        if study is not None:
            written.append(f"plot: {write_plot_of(study, read_json(folder / study, 'type the command again'), folder)}")
        return ", ".join(written)
    except Exception as error:  # whatever it is, it must not take hours of measuring with it
        told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {reason(error)}"
        warnings.warn(f"no report: {told}; what was measured is stored, and `bigbatch report {folder}` draws it", stacklevel=2)
        return ""


def _of_runs(folder: Path, studies: list[Section]) -> list[Section]:
    """All sections, where there are runs. Imported here: what draws runs imports torch, which a simulation does without."""
    from bigbatch.report.comparison import comparison_sections
    from bigbatch.report.index import all_runs, index_section
    from bigbatch.report.run import run_section

    sections = [*comparison_sections(folder), *studies]
    if exists(folder / RECORD):
        return [*sections, run_section(folder)]
    if sections:
        return [*sections, *all_runs(folder)]
    index = index_section(folder)
    return [] if index is None else [index]
