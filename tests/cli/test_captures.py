"""What a person sees is what captures/ shows: look at it, and renew it by `python -m tests.cli.captures`."""

import pytest
from tests.cli.captures import COMMANDS, EXACT, WIDTHS, capture, comparable, path_of

CASES = [
    pytest.param(name, width, marks=[] if name in EXACT or width == WIDTHS[0] else pytest.mark.slow)
    for name in COMMANDS
    for width in WIDTHS
]


@pytest.mark.parametrize(("name", "width"), CASES)
def test_a_terminal_shows_what_is_stored(name, width):
    shown, stored = capture(name, width), path_of(name, width).read_text()
    assert comparable(name, shown) == comparable(name, stored), shown
    assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_stored_shows_a_bar_a_line_a_row_and_whole_words(width):
    texts = {name: path_of(name, width).read_text() for name in COMMANDS}
    assert "━━━ 100 %" in texts["train"]
    for field in ("batch.global_batch", "schedule.warmup.epochs", "schedule.warmup.start_factor", "model.zero_init_last_gamma"):
        assert field in texts["plan"]
    rows = texts["simulate"].partition("64 workers\n")[2].partition("a wider terminal")[0]
    for strategy in ("streaming_diloco_int4", "gossip_symmetric_exponential", "parameter_server"):
        assert rows.count(f"{strategy} ") == 1
    assert sum("%" in line for line in rows.splitlines()) == 26


@pytest.mark.parametrize("name", EXACT)
def test_what_is_compared_exactly_has_numbers(name):
    assert "#" not in comparable(name, path_of(name, WIDTHS[0]).read_text())
