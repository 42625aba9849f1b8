import os

import pytest

from bigbatch.core.checks import OutputError
from bigbatch.core.storage.writing import make_folder, remove_leftovers, write_atomically


def test_writes_whole_files_and_leaves_nothing_else(tmp_path):
    write_atomically(tmp_path / "a", b"one")
    write_atomically(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_atomically(tmp_path / "a", b"old")

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OutputError, match=r"can't write .*a \(3 bytes\): No space left on device; the earlier file is intact; free some"):
        write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="output folder .*file: File exists; choose a folder that you can write"):
        make_folder(tmp_path / "file")


def test_a_folder_that_can_not_be_written():
    """/proc refuses new files to everybody, root too."""
    with pytest.raises(OutputError, match="output folder /proc/bigbatch: .*choose a folder that you can write"):
        make_folder(__import__("pathlib").Path("/proc/bigbatch"))


def test_leftovers_of_a_killed_write_go(tmp_path):
    (tmp_path / ".last.pt.123.tmp").write_text("half")
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []
