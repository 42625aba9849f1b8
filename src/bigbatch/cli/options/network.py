"""What `bigbatch simulate` reads: the link, the size of a model, the curve of a critical batch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigbatch.cli.options import units
from bigbatch.cli.options.values import read_json
from bigbatch.core.checks import UserError

if TYPE_CHECKING:
    from bigbatch.simulate.link import Link
    from bigbatch.study.critical.time_to_target import TradeOff


def read_link(doctor: Path | None, bandwidth: str | None, latency: str | None, *, prefix: str = "--") -> "Link":
    """The link that was measured; what is given besides replaces its part.

    Raises:
        UserError: If either of bandwidth and latency is neither given nor measured, or the file has none.
    """
    from bigbatch.simulate.link import Link, link_of

    measured: dict[str, Any] = {}
    if doctor is not None:
        measured = read_json("--doctor", doctor, "bigbatch doctor --workers N --json FILE").get("link") or {}
        if not {"alpha_s", "beta_s_per_byte"} <= set(measured):
            raise UserError(f"--doctor {doctor}: no exchange was measured; run `bigbatch doctor --workers N --json FILE` with 2 or more")
    elif bandwidth is None or latency is None:
        raise UserError("the link is not known: give --bandwidth and --latency, such as 50Gbit and 50us, or --doctor FILE")
    alpha_s = measured["alpha_s"] if latency is None else units.seconds(f"{prefix}latency", latency)
    if bandwidth is None:
        return Link(alpha_s, measured["beta_s_per_byte"])
    return link_of(bandwidth_bytes_per_s=units.bytes_per_second(f"{prefix}bandwidth", bandwidth), latency_s=alpha_s)


def read_host_link(bandwidth: str | None, latency: str | None) -> "Link | None":
    """The link inside a host, if one is given.

    Raises:
        UserError: If only one of bandwidth and latency is.
    """
    if bandwidth is None and latency is None:
        return None
    if bandwidth is None or latency is None:
        raise UserError("--host-bandwidth or --host-latency alone: the link inside a host needs both, such as 400Gbit and 10us; or neither")
    return read_link(None, bandwidth, latency, prefix="--host-")


def model_size(text: str) -> dict[str, Any]:
    """`Case`'s model_bytes of "100MB"; of a task's name those of its model, and how far PowerSGD of rank 4 compresses that.

    Raises:
        UserError: If it is neither.
    """
    if "/" not in text and ":" not in text:
        return {"model_bytes": units.num_bytes("--model-bytes", text)}
    from bigbatch.recipe import Recipe, recipe_names
    from bigbatch.simulate.compression import powersgd_bytes
    from bigbatch.tasks import load_task

    options = Recipe.named(text).model if text in recipe_names() else {}
    shapes = [tuple(p.shape) for p in load_task(text).model(**options).parameters() if p.requires_grad]
    whole = powersgd_bytes([(1, *shape) for shape in shapes], rank=1)  # one row: nothing to compress
    return {"model_bytes": float(whole), "powersgd_ratio": whole / powersgd_bytes(shapes, rank=4)}


def read_trade_off(path: Path) -> "TradeOff":
    """S_min and E_min in the JSON of `bigbatch critical`.

    Raises:
        UserError: If the file can't be read, or its study has no fit.
    """
    from bigbatch.study.critical.time_to_target import trade_off_of

    try:
        return trade_off_of(read_json("--critical", path, "bigbatch critical"))
    except UserError as error:
        raise error if str(error).startswith("--critical") else UserError(f"--critical {path}: {error}") from None
