"""`bigbatch doctor`: is this machine ready for training, and for how many workers?"""

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from bigbatch.cli.display import output
from bigbatch.cli.options.settings import Data

if TYPE_CHECKING:
    from bigbatch.study.machine.doctor import Report

COLOURS = {"problem": "red", "note": "yellow", "ok": "green"}


def doctor(
    workers: Annotated[int, typer.Option("--workers", help="Workers to prepare for; 2 or more are started and timed.")] = 1,
    data: Data = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for runs, whose disk is timed; here if left out.")] = None,
    json: output.Json = None,
) -> None:
    """Look at this machine before training on it: about 10 seconds. Exit code 2 if there is a problem."""
    from rich.console import Console

    from bigbatch.study.machine.doctor import examine

    output.check(json)
    with Console(stderr=True).status("measuring, about 10 s"):
        report = examine(workers, data=data, out=out)
    if json != output.STANDARD:
        _print(report)
    output.write_json(json, report.to_dict())
    if not report.ready:
        raise typer.Exit(2)


def _print(r: "Report") -> None:
    from rich.table import Table
    from rich.text import Text

    from bigbatch.cli.display.tables import console, say, show

    m, gib = r.machine, 2**30
    available = f", {m.available_bytes / gib:.1f} GiB available" if m.available_bytes else ""
    rows = [
        ["versions", ", ".join(f"{name} {version}" for name, version in m.versions.items())],
        ["CPU cores", f"{m.cores}; threads per worker: {r.threads_per_worker}"],
        ["memory", f"{m.memory_bytes / gib:.1f} GiB{available}" if m.memory_bytes else "unknown"],
        ["GPUs", ", ".join(f"{gpu.name} ({gpu.memory_bytes / gib:.0f} GiB)" for gpu in m.gpus) or "none"],
        ["backends", ", ".join(m.backends) or "none"],
        ["matrix products", ", ".join(f"{speed:,.0f} GFLOP/s ({name})" for name, speed in r.gflops.items())],
    ]
    if r.disk is not None:
        rows += [["disk", f"writes {r.disk.write_bytes_per_s / 1e6:,.0f} MB/s, reads {r.disk.read_bytes_per_s / 1e6:,.0f} MB/s"]]
    show("This machine", ["what", "value"], rows)
    if r.exchange is not None and r.all_reduce is not None and r.link is not None:
        columns = ["KiB", "median ms", "slowest ms", "model ms"]
        times = {b: (median(each), max(each), r.all_reduce.seconds(b)) for b, each in r.exchange.seconds.items()}
        rows = [[f"{b // 1024:,}", *(f"{1000 * s:.2f}" for s in each)] for b, each in times.items()]
        show(f"All-reduce of {r.workers} workers, {r.exchange.backend}", columns, rows, numbers=set(columns))
        for name, model in {"all-reduce": r.all_reduce, "as a ring, each message": r.link}.items():
            cost = f"{1000 * model.alpha_s:.3f} ms + bytes at {model.bandwidth_bytes_per_s / 1e6:,.0f} MB/s"
            say(f"{name}: {cost}; error {100 * model.residual:.0f} %")
        say(f"a message of 4 bytes: {1000 * r.exchange.latency_s:.3f} ms\n")
    lines = Table.grid(padding=(0, 2, 0, 0))
    for f in r.findings:
        lines.add_row(Text(f.severity, COLOURS[f.severity]), Text("; ".join(filter(None, [f.text, f.remedy]))))
    console().print(lines)
