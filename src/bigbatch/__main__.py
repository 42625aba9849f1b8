"""`bigbatch` and `python -m bigbatch`."""

import _signal  # type: ignore[import-not-found]  # what `signal` is made of, which takes 25 ms: until then Ctrl-C shows a traceback
import os
import sys

TYPE_CHECKING = False  # see bigbatch/__init__.py
if TYPE_CHECKING:
    from types import FrameType


def main() -> None:
    """Run the program; where its own packages are missing, say so in one line (exit code 2)."""
    _signal.signal(_signal.SIGINT, _end)  # until the program has its own handler, and after it
    from bigbatch.core.extras import MissingExtra

    try:
        from bigbatch.cli.app import main as run
    except MissingExtra as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    run()


def _end(_number: int, _frame: "FrameType | None") -> None:
    """Nothing has begun, or all is done."""
    os._exit(130)


if __name__ == "__main__":
    main()
