"""Damage at random to every file of a run: see tests/fuzz_files.py. benchmarks/fuzz_files.py tries 2,000."""

import pytest
from tests.fuzz_files import KINDS, Folder, count, shares

NUMBER = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Folder(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(("kind", "number"), shares(NUMBER).items(), ids=KINDS)
def test_a_damaged_file_is_read_or_refused_in_one_line(folder, tmp_path, kind, number):
    counts, wrong = count(folder, kind, number, tmp_path / "run")
    assert wrong == []
    assert sum(counts.values()) == number


def test_an_undamaged_file_is_read(folder, tmp_path, monkeypatch):
    """The harness's own: nothing is refused, lost or warned about where nothing is wrong."""
    for kind, (name, file, _, read, weight) in KINDS.items():
        monkeypatch.setitem(KINDS, kind, (name, file, (lambda chance, content: content,), read, weight))
        counts, wrong = count(folder, kind, 1, tmp_path / "run")
        assert wrong == []
        assert set(counts) <= {"works", "report"}, kind


@pytest.mark.parametrize("kind", ["record", "lines of a study"])
def test_the_harness_sees_a_silent_loss(folder, tmp_path, monkeypatch, kind):
    """As it was before: reading stopped at the first damaged line."""
    import bigbatch.core.storage.json_lines as json_lines
    import bigbatch.train.state.record_lines as record_lines

    whole = json_lines.read_lines

    def up_to_the_damage(path, check, **options):
        lines = whole(path, check, **options)
        first = min((damage.number for damage in lines.damaged), default=10**9)
        return lines._replace(good=[line for line in lines.good if line.number < first], damaged=[])

    monkeypatch.setattr(json_lines, "read_lines", up_to_the_damage)
    monkeypatch.setattr(record_lines, "read_lines", up_to_the_damage)
    _, wrong = count(folder, kind, 40, tmp_path / "run")
    assert any("Silent" in text for text in wrong)
