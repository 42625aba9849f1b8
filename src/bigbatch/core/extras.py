"""Optional packages: each comes with an extra of bigbatch, and where one is missing a line says what to install."""

from collections.abc import Iterator
from contextlib import contextmanager

from bigbatch.core.checks import UserError

DISTRIBUTIONS = {"mlflow": "mlflow-skinny", "zmq": "pyzmq"}
"""What is installed under another name than it is imported by."""


class MissingExtra(ImportError, UserError):
    """A package of an extra is not installed."""


@contextmanager
def needed(what: str, *, extra: str) -> Iterator[None]:
    """Import packages of an extra in the block below.

    Args:
        what: Needs them, such as "a report".
        extra: Of `pip install 'bigbatch[extra]'`.

    Raises:
        MissingExtra: If one is not installed.

    >>> with needed("a trip", extra="space"):
    ...     import rocket
    Traceback (most recent call last):
    bigbatch.core.extras.MissingExtra: a trip needs rocket, which is not installed: pip install 'bigbatch[space]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if isinstance(error, MissingExtra) or package in ("", "bigbatch"):
            raise
        name = DISTRIBUTIONS.get(package, package)
        raise MissingExtra(f"{what} needs {name}, which is not installed: pip install 'bigbatch[{extra}]'", name=package) from error
