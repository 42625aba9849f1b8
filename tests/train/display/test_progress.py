"""What a person sees of a run: on a narrow terminal the bar and the time left first, in a pipe a line within a second."""

import itertools

import pytest

from bigbatch.train.display import progress
from bigbatch.train.display.progress import Display, Stages, that_fit


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def shown(monkeypatch, width, title="reference 32 seed 0"):
    """The widest line that a bar draws."""
    import io

    from rich.console import Console

    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None, legacy_windows=False)
    monkeypatch.setattr("rich.console.Console", lambda **_: console)
    with Display(title, total=100_000, start=0, epoch=1_000, quiet=False) as display:
        display.show_score("accuracy 98.50 %")
        for samples in (10_000, 20_000, 30_000):
            display._next = 0.0
            display.update(samples, loss=0.0123)
            display._bar.refresh()
        task = display._bar.tasks[0]
    lines = [line for line in file.getvalue().replace("\r", "\n").splitlines() if " 30 %" in line]
    return max((line.partition("\x1b[2K")[2] or line for line in lines), key=len), task


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("title", ["digits/mlp", "reference 32 seed 0", "a title that is longer than any line should ever be, " * 2])
def test_the_bar_and_the_time_left_are_there_at_every_width(monkeypatch, width, title):
    line, task = shown(monkeypatch, width, title)
    assert "━" in line
    assert ":" in line  # the time left
    assert "loss 0.0123" in line
    assert "…" not in line.removeprefix(title[: width // 3 - 1] + "…")
    assert len(line.rstrip()) <= width
    assert task.percentage == 30


def test_a_wide_terminal_has_all(monkeypatch):
    line, _ = shown(monkeypatch, 160)
    for part in ("loss 0.0123", "accuracy 98.50 %", "epoch 30.0/100", "samples/s"):
        assert part in line


def test_parts_that_fit_keep_their_order():
    parts = ["loss 0.5", "", "accuracy 98 %", "epoch 1/2"]
    assert [that_fit(parts, width) for width in (7, 8, 22, 23, 99)] == [
        "",
        "loss 0.5",
        "loss 0.5",
        "loss 0.5  accuracy 98 %",
        "loss 0.5  accuracy 98 %  epoch 1/2",
    ]


def test_in_a_pipe_a_line_within_a_second_and_then_every_five(clock, capsys):
    with Display("a run", total=1_000, start=0, epoch=100, quiet=False) as display:
        seconds = []
        for tick in itertools.count(1):
            clock[0] = 100.0 + 0.5 * tick
            if tick > 24:
                break
            display.update(10 * tick, loss=0.5)
            if capsys.readouterr().err:
                seconds.append(0.5 * tick)
    assert seconds == [1.0, 6.0, 11.0]


def test_a_quiet_run_says_nothing(clock, capsys):
    with Display("a run", total=1_000, start=0, epoch=100, quiet=True) as display:
        clock[0] += 60
        display.update(1_000, loss=0.5)
    assert capsys.readouterr().err == ""


def test_a_long_stage_leaves_room_for_the_bar(monkeypatch):
    import io

    from rich.console import Console

    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system=None, legacy_windows=False)
    monkeypatch.setattr("rich.console.Console", lambda **_: console)
    with Stages("curvature of runs/scale/a-task-with-a-long-name/reference/seed-0", total=9, quiet=False) as stages:
        stages.stage("spectral density")(3, 10)
        stages._bar.refresh()
    assert "━" in file.getvalue()
    assert "3/10" in file.getvalue()
