"""A tracker beside a run: a process of its own follows the run's folder, so that no tracker can stop, slow or change a run.

    with tracked("mlflow", Path("runs/one")):
        fit(task, recipe, out="runs/one")

A tracker's threads, random numbers and failures stay in that process. It ends when its input is closed, also by the death of this one,
and then sends what is left.
"""

import contextlib
import select
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bigbatch.core.checks import UserError
from bigbatch.integrations.tracker import LABELS, check_tracker

EVERY_S = 2.0
"""Seconds between two looks."""
WAIT_S = 120.0
"""Seconds that a tracker has at the end to send what is left."""

SAID = 3
"""Exit code of a process that has said what failed."""


@contextmanager
def tracked(tracker: str | None, folder: Path | None, *, study: bool = False, wait_s: float = WAIT_S) -> Iterator[None]:
    """Mirror a folder to a tracker, from `with` to its end. Where the tracker fails there is one warning, and the run goes on.

    Args:
        tracker: Its name; None does nothing.
        folder: Of the run or the study; it need not exist yet.
        study: Whether it is a study's, whose runs are below it.
        wait_s: Seconds that the tracker has at the end.

    Raises:
        UserError: If the tracker is unknown or not installed, or there is no folder.
    """
    if tracker is None:
        yield
        return
    check_tracker(tracker)
    if folder is None:
        raise UserError("--track: follows what a run writes; give it a folder with --out")
    command = [sys.executable, "-W", "ignore", "-m", "bigbatch.integrations.follow", tracker, str(folder), "study" if study else "run"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            if process.wait(wait_s) not in (0, SAID):
                warnings.warn(f"{LABELS[tracker]}: its process ended with exit code {process.returncode}; not all is shown", stacklevel=3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            warnings.warn(f"{LABELS[tracker]}: was not done within {wait_s:g} s; what it had not sent is left out", stacklevel=3)


def main() -> None:
    """Follow the folder until the input ends."""
    tracker, folder, kind = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it says when it ends
    try:
        from bigbatch.integrations.mirror import mirror_of

        mirror = mirror_of(tracker, Path(folder), study=kind == "study")
        while not select.select([sys.stdin], [], [], EVERY_S)[0]:
            mirror.look()
        mirror.look()
        mirror.end()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        sys.stderr.write(f"warning: {LABELS[tracker]}: {reason[:300]}; the run goes on without it\n")
        sys.stderr.flush()
        raise SystemExit(SAID) from None


if __name__ == "__main__":
    main()
