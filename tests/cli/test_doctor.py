"""`bigbatch doctor` as a person meets it."""

import json

import pytest
from tests.cli.command import bigbatch

from bigbatch.core.hardware.cores import usable_cores


def test_tables_findings_and_a_file(tmp_path):
    done = bigbatch("doctor", "--json", "new/doctor.json", cwd=tmp_path, expect=0)
    for word in ("This machine", "torch", "CPU cores", "GFLOP/s (1 thread)", "disk", "1 worker on ", "wrote new/doctor.json"):
        assert word in done.stdout
    assert done.stderr == ""
    assert json.loads((tmp_path / "new" / "doctor.json").read_text())["ready"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_two_workers_as_json(tmp_path):
    done = bigbatch("doctor", "--workers", 2, "--json", "-", cwd=tmp_path, expect=0 if usable_cores() > 1 else 2)
    report = json.loads(done.stdout)
    assert report["workers"] == 2
    assert [each["num_bytes"] for each in report["exchange"]["all_reduce"]] == [4096 * 4**i for i in range(7)]
    assert report["all_reduce"]["alpha_s"] == pytest.approx(2 * report["link"]["alpha_s"])  # a ring of 2: two messages, of half the bytes
    assert report["all_reduce"]["beta_s_per_byte"] == pytest.approx(report["link"]["beta_s_per_byte"])
    assert {f["severity"] for f in report["findings"]} <= {"ok", "note", "problem"}
    assert list(tmp_path.iterdir()) == []


def test_a_problem_has_exit_code_2_and_all_else_is_told(tmp_path):
    done = bigbatch("doctor", "--data", "nowhere", cwd=tmp_path, expect=2)
    assert "This machine" in done.stdout
    assert "problem  data set fashion-mnist: train-images-idx3-ubyte.gz not found; tried nowhere" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--workers", "0"], "workers = 0: must be a finite number above zero"), (["--json", "/proc/x/y"], "output folder /proc/x")],
)
def test_a_mistake_is_one_readable_line(tmp_path, arguments, message):
    done = bigbatch("doctor", *arguments, cwd=tmp_path, expect=2)
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
