"""`bigbatch extrapolate` as a person meets it."""

import json

import pytest
from tests.cli.command import bigbatch
from tests.study.critical.test_extrapolate import store, three


def test_table_sentence_warning_and_json(tmp_path):
    studies = three(tmp_path)
    done = bigbatch("extrapolate", *studies, "--size", "32e6", "--json", "found.json", cwd=tmp_path)
    for text in ("critical batch against size", "95 % interval", "[170, 280]", "predicted", "at a size of 32,000,000, 2 times the largest"):
        assert text in done.stdout, text
    assert "warning:" not in done.stdout
    assert done.stdout.endswith("wrote found.json\n")
    stored = json.loads((tmp_path / "found.json").read_text())
    assert stored["prediction"]["size"] == 32e6
    far = bigbatch("extrapolate", *studies, "--size", 160_000_000, cwd=tmp_path)
    assert "warning: 10 times the largest size measured, 16,000,000: beyond 4 times" in " ".join(far.stdout.split())
    alone = json.loads(bigbatch("extrapolate", *studies, "--size", 32_000_000, "--json", "-", cwd=tmp_path).stdout)
    assert alone == stored
    assert alone["prediction"]["critical_batch"]["lower"] < alone["prediction"]["critical_batch"]["value"]
    assert "extrapolate" in bigbatch("--help").stdout


@pytest.mark.parametrize(
    ("studies", "size", "message"),
    [
        (["a=1", "b=2"], 8, "2 of 2 sizes have a finite critical batch: a factor, a power and a scatter need 3"),
        (["a", "b", "c"], 8, "size = 25,940: stands there twice; give each size once"),
        (["a=1", "b=2", "c=4"], 0, "size = 0.0: must be a finite number above zero"),
        (["a=1", "b=2", "absent=4"], 8, "absent: can't be read: No such file or directory; give a file that `bigbatch critical` wrote"),
        (["a=1", "b=2", "c=x"], 8, "c=x: size = 'x': must be a number, such as STUDY=1e9"),
        (["a=1", "b=2", "broken.json=4"], 8, "broken.json: is damaged: not JSON"),
        (["a=1", "b=2", "c=4", "none=8"], 8, "none=8: its study has no fit; let three batches or more reach the target"),
    ],
)
def test_a_mistake_is_one_readable_line(tmp_path, studies, size, message):
    three(tmp_path)
    store(tmp_path / "none", value=1.0, fit=None)
    (tmp_path / "broken.json").write_text("{")
    done = bigbatch("extrapolate", *studies, "--size", size, cwd=tmp_path, expect=2)
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
