"""The curves of runs, as plots: those that there are values for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import matplotlib

from bigbatch.core.metric import Metric
from bigbatch.report.curvature import top_eigenvalue, trace_of
from bigbatch.report.plots import (
    SVG_STYLE,
    Points,
    Record,
    batch_size_changes,
    draw,
    global_batch,
    learning_rate,
    start_of,
    training_loss,
    validation_score,
)
from bigbatch.report.workers import distances


def curves(records: Mapping[str, Sequence[Record]], metric: Metric) -> Iterator[str]:
    """Plots of runs by arm; a function or a command may tell no losses, or nothing on the way."""
    scores: Callable[[Record, str], Points] = partial(validation_score, metric=metric)

    def told(points: Callable[[Record, str], Points], against: str = "update") -> bool:
        return any(points(record, against)[0] for runs in records.values() for record in runs)

    with matplotlib.rc_context(SVG_STYLE):
        for against in ("samples", "update"):
            by = "samples" if against == "samples" else "updates"
            if told(training_loss):
                yield draw(records, training_loss, against=against, ylabel="training loss", title=f"Training loss by {by}")
            named = {"ylabel": f"validation {metric.label}", "title": f"Validation {metric} by {by}"}
            if told(scores):
                yield draw(records, scores, against=against, **named, dots=True)
        if told(learning_rate):
            yield draw(records, learning_rate, against="samples", ylabel="learning rate", title="Learning rate by samples")
        if any(batch_size_changes(record) for runs in records.values() for record in runs):
            yield draw(records, global_batch, against="samples", ylabel="global batch, samples", title="Global batch by samples")
        if told(distances, "samples"):
            yield draw(records, distances, against="samples", ylabel="% of the mean's length", title="Distance of workers from their mean")
        for points, name in ((top_eigenvalue, "Top eigenvalue"), (trace_of, "Trace")):
            if told(points):
                yield draw(records, points, against="update", ylabel="of the Hessian", title=f"{name} by updates")


def environment_of(records: Sequence[Record]) -> str:
    """Where the first of some runs ran, in words."""
    start = next((start for record in records if (start := start_of(record)) is not None), None)
    told = ", ".join(f"{name} {value}" for name, value in start["environment"].items()) if start is not None else "not recorded"
    return f"Environment: {told}"
