"""Files that are missing, damaged or no files at all: one line with the path, what is wrong where, and a remedy."""

import os

import pytest

from bigbatch.core.checks import InputError
from bigbatch.core.storage.reading import Malformed, decode, exists, parse_object, parse_toml, read_bytes, read_json, read_text

LONG = "9" * 5000


def test_reads_what_is_right(tmp_path):
    (tmp_path / "a").write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, null], "b": "\xc3\xa4"}')  # as an editor on Windows saves it
    assert read_json(tmp_path / "a", "") == {"a": [1, 2.5, None], "b": "ä"}
    assert parse_toml("a = 1\r\nb = [[2]]\r\n") == {"a": 1, "b": [[2]]}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b'{"a": 1,\n "b": 2', r"not JSON: Expecting ',' delimiter \(line 2, column 8\)"),
        (b'{"a": 1', r"not JSON: Expecting ',' delimiter \(column 8\)"),
        (b"12", "holds a number where an object should be"),
        (b"null", "holds null where an object should be"),
        (b"[]", "holds a list where an object should be"),
        (b'"x"', "holds a text where an object should be"),
        (b"true", "holds a truth value where an object should be"),
        (b'{"a": 1}\n\xff', r"not UTF-8 \(byte 0xff in line 2\)"),
        (b"\0" * 100, r"not JSON: Expecting value \(column 1\)"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (f'{{"a": {LONG}}}'.encode(), "a whole number of 5,000 digits, 64 bits have 19"),
        (b'{"a": 9223372036854775808}', "a whole number of 19 digits, 64 bits have 19"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested deeper than 100 levels"),
        (b'{"a": ' + b"[" * 101 + b"]" * 101 + b"}", "nested deeper than 100 levels"),
        (b'{"a": "\\ud800"}', "half a character"),
    ],
)
def test_json_that_is_damaged(tmp_path, content, why):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"a.json: is damaged: {why}.*; restore a copy$") as error:
        read_json(path, "restore a copy")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a = ", r"Invalid value \(at end of document\)"),
        (f"a = {LONG}", "a number of more than 4,300 digits"),
        ("a = 9223372036854775808", "a whole number of more than 64 bits"),
        ("a = " + "[" * 5000 + "]" * 5000, "nested deeper than 100 levels"),
        ("a." * 2000 + "a = 1", "nested deeper than 100 levels"),
        ("a = " + "{a = " * 2000 + "1" + "}" * 2000, "nested deeper than 100 levels"),
    ],
)
def test_toml_that_is_damaged(text, why):
    with pytest.raises(Malformed, match=why):
        parse_toml(text)


def test_what_is_no_file(tmp_path):
    with pytest.raises(InputError, match=r"absent: can't be read: No such file or directory; check it$"):
        read_bytes(tmp_path / "absent", "check it")
    with pytest.raises(InputError, match=r"can't be read: Is a directory; check it$"):
        read_text(tmp_path, "check it")
    with pytest.raises(InputError, match=r"can't be read: File name too long; check it$"):
        read_bytes(tmp_path / ("x" * 300), "check it")
    with pytest.raises(InputError, match=r"can't be read: embedded null byte; check it$"):
        read_bytes(tmp_path / "a\0b", "check it")


@pytest.fixture
def nobody():
    """Root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def closed(tmp_path):
    (tmp_path / "a").touch(mode=0o000)
    return tmp_path / "a"


def test_what_may_not_be_read(closed, nobody):
    with pytest.raises(InputError, match="can't be read: Permission denied"):
        read_bytes(closed, "")


def test_whether_there_is_a_file(tmp_path):
    assert exists(tmp_path)
    assert not exists(tmp_path / "absent")
    with pytest.raises(InputError, match=r"File name too long; check the path$"):
        exists(tmp_path / ("x" * 300))


def test_text_in_another_encoding():
    with pytest.raises(Malformed, match=r"not UTF-8 \(byte 0xe4 in line 3\)"):
        decode("a\nb\nä".encode("latin-1"))
    with pytest.raises(Malformed, match="holds a number"):
        parse_object("1e999")
