"""Files of JSON lines: damage costs its own lines, is told, and the file as it was is kept; a line is appended whole or not at all."""

import json
import os
import warnings

import pytest
from tests.limited_files import limited_files

from bigbatch.core.checks import OutputError
from bigbatch.core.storage.json_lines import append_line, read_lines, stored_lines


def check(line):
    float(line["score"])


def text(*numbers):
    return "".join(json.dumps({"run": i, "score": 0.5}) + "\n" for i in numbers).encode()


def runs(lines):
    return [line["run"] for line in lines]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (b"\0" * 512 + b"\n", r"not JSON: Expecting value \(column 1\)"),
        (b"12\n", "holds a number where an object should be"),
        (b"null\n", "holds null"),
        (b"[]\n", "holds a list"),
        (b"\xff\n", "not UTF-8"),
        (b'{"run": 3, "sco\n', "not JSON: Unterminated string"),
        (b'{"run": 3}\n', "no 'score'"),
        (b'{"run": 3, "score": "x"}\n', "could not convert string to float: 'x'"),
        (b'{"run": 3, "score": null}\n', "float.. argument must be"),
    ],
)
@pytest.mark.parametrize("last", [False, True])
def test_damage_costs_its_own_lines(tmp_path, damage, why, last):
    path = tmp_path / "a.jsonl"
    before = text(1, 2) + (damage.rstrip(b"\n") if last and not damage.startswith(b'{"run": 3, "sco') else damage + text(4, 5))
    path.write_bytes(before)
    with pytest.warns(
        UserWarning, match=rf"a.jsonl: 1 line is damaged \(line 3: {why}.*\), \d can be read and are kept; the file as it was"
    ):
        assert runs(stored_lines(path, check)) == ([1, 2] if before.endswith(damage.rstrip(b"\n")) else [1, 2, 4, 5])
    assert (tmp_path / "a.jsonl.damaged-1").read_bytes() == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stored_lines(path, check)  # it is whole now


def test_a_line_that_a_kill_left_unfinished_goes_before_another_is_appended(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(text(1, 2)[:-10])
    assert runs(stored_lines(path, check)) == [1]
    append_line(path, {"run": 3, "score": 1})
    assert runs(stored_lines(path, check)) == [1, 3]
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_a_last_line_that_lacks_only_its_end_is_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(text(1, 2)[:-1])
    assert runs(stored_lines(path, check)) == [1, 2]
    append_line(path, {"run": 3, "score": 1})
    assert runs(stored_lines(path, check)) == [1, 2, 3]


def test_lines_of_windows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(text(1, 2).replace(b"\n", b"\r\n"))
    assert runs(stored_lines(path, check)) == [1, 2]


def test_who_only_reads_repairs_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(text(1) + b"12\n" + text(2))
    assert runs(stored_lines(path, check, writes=False)) == [1, 2]
    assert path.read_bytes() == text(1) + b"12\n" + text(2)


def test_no_file(tmp_path):
    assert stored_lines(tmp_path / "a.jsonl", check) == []
    assert read_lines(tmp_path / "a.jsonl", check).values == []


def test_a_second_damage_is_kept_beside_the_first(tmp_path):
    path = tmp_path / "a.jsonl"
    for number in (1, 2):
        path.write_bytes(text(1) + b"null\n")
        with pytest.warns(UserWarning, match=f"the file as it was is a.jsonl.damaged-{number}"):
            stored_lines(path, check)


def test_a_full_disk_leaves_the_lines_before(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(text(1, 2))
    with (
        limited_files(len(text(1, 2)) + 10),
        pytest.raises(OutputError, match=r"can't write .*a.jsonl: File too large; its earlier lines are intact; free some space, then"),
    ):
        append_line(path, {"run": 3, "score": 1})
    assert path.read_bytes() == text(1, 2)


def test_a_full_disk_while_a_file_is_repaired(tmp_path):
    path = tmp_path / "a.jsonl"
    before = text(*range(50)) + b"null\n"
    path.write_bytes(before)
    with limited_files(100), pytest.raises(OutputError, match="can't write .*a.jsonl.damaged-1"):
        stored_lines(path, check)
    assert path.read_bytes() == before
