"""`bigbatch` and `python -m bigbatch`."""

import sys

from bigbatch.core.extras import MissingExtra


def main() -> None:
    """Run the program; where its own packages are missing, say so in one line (exit code 2)."""
    try:
        from bigbatch.cli.app import main as run
    except MissingExtra as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    run()


if __name__ == "__main__":
    main()
