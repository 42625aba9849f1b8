"""`bigbatch simulate`: what each way to train on many workers would cost on a network."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bigbatch.cli.display import output
from bigbatch.cli.options import units
from bigbatch.cli.options.network import model_size, read_host_link, read_link, read_trade_off
from bigbatch.cli.options.values import whole_numbers


def simulate(
    workers: Annotated[str, typer.Option("--workers", metavar="N,N", help="Number of workers, or several: 2,8,64.")],
    model_bytes: Annotated[str, typer.Option("--model-bytes", metavar="SIZE", help="Of the gradients: 100MB; or a task.")],
    step: Annotated[str, typer.Option("--step", metavar="TIME", help="A worker's step without any exchange, such as 120ms.")],
    bandwidth: Annotated[str | None, typer.Option("--bandwidth", help="Of a host's link, in each direction: 50Gbit, 1GB.")] = None,
    latency: Annotated[str | None, typer.Option("--latency", help="Of a message, such as 50us.")] = None,
    doctor: Annotated[Path | None, typer.Option("--doctor", help="JSON of `bigbatch doctor --workers N`, for both.")] = None,
    backward_share: Annotated[float, typer.Option("--backward-share", help="Of the step.")] = 2 / 3,
    spread: Annotated[float, typer.Option("--spread", help="Standard deviation of a step over its mean, such as 0.05.")] = 0.0,
    local_batch: Annotated[int, typer.Option("--local-batch", help="Samples of a worker in a step.")] = 32,
    per_host: Annotated[int, typer.Option("--workers-per-host", help="Workers that share a link.")] = 1,
    host_bandwidth: Annotated[str | None, typer.Option("--host-bandwidth", help="Between workers of a host; free if not given.")] = None,
    host_latency: Annotated[str | None, typer.Option("--host-latency", help="Of a message inside a host.")] = None,
    all_reduce: Annotated[str, typer.Option("--all-reduce", help="Of the ways that name none: fastest, or gloo_ring.")] = "fastest",
    bucket: Annotated[str, typer.Option("--bucket", metavar="SIZE", help="Gradients that are sent together.")] = "25MiB",
    local_steps: Annotated[int, typer.Option("--local-steps", help="Updates between averages of local SGD.")] = 8,
    outer_period: Annotated[int, typer.Option("--outer-period", help="Updates between outer steps (DiLoCo and its like).")] = 30,
    fragments: Annotated[int, typer.Option("--fragments", help="Pieces that Streaming DiLoCo exchanges in turn.")] = 2,
    overlap_updates: Annotated[int, typer.Option("--overlap-updates", help="Updates that hide a piece's exchange.")] = 1,
    lost_every: Annotated[str | None, typer.Option("--lost-every", metavar="TIME", help="Mean time to a worker's loss: 24h.")] = None,
    recovery: Annotated[str, typer.Option("--recovery", metavar="TIME", help="From a loss until work goes on.")] = "60s",
    servers: Annotated[int, typer.Option("--servers", help="Hosts that serve parameters.")] = 1,
    overlap: Annotated[bool, typer.Option(help="Gossip while computing, not after.")] = True,
    price: Annotated[float | None, typer.Option("--price", help="Of a worker-hour.")] = None,
    critical: Annotated[Path | None, typer.Option("--critical", help="JSON of `bigbatch critical`: time and cost to its target.")] = None,
    fixed: Annotated[str, typer.Option("--fixed", metavar="TIME", help="Of the step: what does not shrink with the batch.")] = "0ms",
    out: Annotated[Path, typer.Option("--out", help="Folder of plot and numbers.")] = Path("runs/simulate"),
    json: output.Json = None,
) -> None:
    """Compare ways to exchange, by latency, bandwidth and compute: time per update, efficiency, samples/s, cost, and which wins."""
    from bigbatch.cli.display.tables import say, show
    from bigbatch.core.storage.writing import make_folder, write_atomically
    from bigbatch.report import leave_report
    from bigbatch.simulate.case import Case
    from bigbatch.study.simulate.simulate import RESULT
    from bigbatch.study.simulate.simulate import simulate as study

    output.check(json)
    numbers, link, size = whole_numbers("--workers", workers), read_link(doctor, bandwidth, latency), model_size(model_bytes)
    sizes = {**size, "step_s": units.seconds("--step", step), "bucket_bytes": units.num_bytes("--bucket", bucket)}
    shape: dict[str, Any] = {"workers_per_host": per_host, "host_link": read_host_link(host_bandwidth, host_latency), "servers": servers}
    shape |= {"local_steps": local_steps, "outer_period": outer_period, "fragments": fragments, "overlap_updates": overlap_updates}
    lossy = {"lost_every_s": lost_every and units.seconds("--lost-every", lost_every), "recovery_s": units.seconds("--recovery", recovery)}
    shape |= {"backward_share": backward_share, "spread": spread, "overlap": overlap, "all_reduce": all_reduce, **lossy}
    prices: dict[str, Any] = {"local_batch": local_batch, "price": price}
    result = study(Case(max(numbers), link, **sizes, **shape), workers=numbers if len(numbers) > 1 else (), **prices)
    stored, tables, words = result.to_dict(), result.tables(), [result.sentence()]
    if critical is not None:
        from bigbatch.study.critical.time_to_target import time_to_target

        curve, fixed_s = read_trade_off(critical), units.seconds("--fixed", fixed)
        target = time_to_target(result.case, curve, workers=result.workers, fixed_s=fixed_s, **prices)
        stored["target"] = target.to_dict()
        tables.append(target.table())
        words.append(target.sentence())

    write_atomically(make_folder(out) / RESULT, output.as_json(stored).encode())
    drawn = leave_report(out, RESULT)
    if json != output.STANDARD:
        for table in tables:
            show(*table[:3], numbers=table.numbers, spare=table.spare)
        for text in (*words, *(f"caveat: {doubt}" for doubt in result.doubts())):
            say(text)
        say(f"{drawn}, numbers: {json or out / RESULT}".removeprefix(", "))
    output.write_json(json, stored)
