"""`bigbatch report` of any folder: every kind, finished or not, results first; an index where runs lie below."""

import json
import re
import shutil
import warnings

import pytest
from tests.report.stored import branches, critical, noise, steps

from bigbatch import Interrupted, Recipe, UserError, fit, scale
from bigbatch.core.checks import InputError
from bigbatch.report import leave_report, write_report
from bigbatch.runner import task as task_runner
from bigbatch.simulate.case import Case
from bigbatch.simulate.link import link_of
from bigbatch.study.simulate.simulate import simulate

RECIPE = Recipe.named("digits/mlp").replace({"budget.epochs": 1, "batch.micro_batch": 32})


def run(folder, **changes):
    return fit("digits/mlp", RECIPE.replace(changes), out=folder, quiet=True, tensorboard=False)


def text_of(page):
    """What a reader sees, without plots and styles."""
    bare = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", bare).split())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(folder)


def test_a_run_shows_its_score_updates_and_time_before_its_curves(finished):
    """Before, it had none of them, and asked whether accuracy held."""
    folder, result = finished
    page = write_report(folder).read_text()
    text = text_of(page)
    assert f"test accuracy {100 * result.test_score:.2f} % after 41 updates" in text
    for part in ("state finished", "updates 41", "samples 1,297, 1 epochs", f"time in updates {result.train_s:,.1f} s", "samples/s"):
        assert part in text
    assert "hold when the batch grew" not in text
    assert page.index("time in updates") < page.index("<svg")


@pytest.mark.parametrize(("state", "words"), [("stopped", "not finished (stopped): validation accuracy"), ("diverged", "diverged after")])
def test_a_run_that_did_not_end(tmp_path, finished, state, words):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    record = tmp_path / "run" / "record.jsonl"
    lines = [line for line in record.read_text().splitlines() if json.loads(line)["kind"] != "end" and '"test"' not in line]
    if state == "diverged":
        lines.append(json.dumps({"kind": "diverged", "update": 42, "samples": 1400, "loss": "nan"}))
    record.write_text("\n".join(lines) + "\n")
    assert words in text_of(write_report(tmp_path / "run").read_text())


def test_a_run_whose_result_is_damaged(tmp_path, finished):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "result.json").write_text("{")
    text = text_of(write_report(tmp_path / "run").read_text())
    assert "after 41 updates; damaged: " in text
    assert "result.json" in text


@pytest.mark.parametrize(
    ("name", "stored", "words"),
    [
        ("noise.json", noise(at_least=True), "batches up to about 50 [40, 65] samples early"),
        ("critical.json", critical(at_least=True), "critical batch about"),
        ("branches.json", branches(), "at update 80: about 500"),
        ("steps.json", steps(), "perfect scaling up to about 64"),
        ("simulate.json", simulate(Case(8, link_of(bandwidth_bytes_per_s=6e9, latency_s=5e-5), 1e8, 0.1)).to_dict(), "8 workers: "),
    ],
)
def test_each_study_alone(tmp_path, name, stored, words):
    """Before, none of these had a page."""
    (tmp_path / name).write_text(json.dumps(stored))
    page = write_report(tmp_path).read_text()
    assert words in text_of(page)
    assert page.count('<svg role="img"') == (2 if name == "steps.json" else 1)
    assert page.index('class="verdict') < page.index("<svg") < page.index("<table")
    assert leave_report(tmp_path, name) == f"report: {tmp_path / 'report.html'}, plot: {tmp_path / name.replace('.json', '.svg')}"


@pytest.mark.parametrize("name", ["noise.json", "critical.json", "branches.json", "steps.json", "simulate.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"points": [3], "stretches": 3, "sentence": "x", "metric": "m"}'])
def test_a_damaged_study_is_named_and_ends_no_command(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name}.*type the `bigbatch .*` that wrote it again"):
        write_report(tmp_path)
    with pytest.warns(UserWarning, match=r"no report: .*; what was measured is stored, and `bigbatch report .*` draws it"):
        assert leave_report(tmp_path) == ""


def test_an_interrupted_comparison(tmp_path, monkeypatch):
    """Before, it was refused."""
    original, calls = task_runner.fit, []

    def stops(*args, **kwargs):
        calls.append(kwargs["out"])
        if len(calls) == 4:
            raise Interrupted("stopped")
        return original(*args, **kwargs)

    monkeypatch.setattr(task_runner, "fit", stops)
    with pytest.raises(Interrupted):
        scale("digits/mlp", to=64, rule="linear", seeds=2, max_seeds=2, recipe=RECIPE, out=tmp_path, quiet=True)
    page = write_report(tmp_path).read_text()
    assert "not finished: 3 runs finished, 0 not; the same `bigbatch scale` goes on from here" in text_of(page)
    assert page.count("<svg") == 5
    assert "seed-0" in page


def test_a_folder_of_folders_gets_an_index(tmp_path, finished):
    """Before, `bigbatch report runs` was refused."""
    shutil.copytree(finished[0], tmp_path / "a & b")
    (tmp_path / "a & b" / "report.html").unlink(missing_ok=True)
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "noise.json").write_text(json.dumps(noise(at_least=False)))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "critical.json").write_text("{")
    page = write_report(tmp_path).read_text()
    text = text_of(page)
    assert "2 studies; 1 run, 1 finished" in text
    assert "batches up to about 50" in text
    assert "critical.json is damaged" in text
    assert "a &amp; b" in page
    assert "href" not in page.replace('href="data:,"', "")
    write_report(tmp_path / "a & b")
    assert '<a href="a%20%26%20b/report.html">a &amp; b</a>' in write_report(tmp_path).read_text()


def test_a_study_has_a_table_of_all_its_runs(tmp_path):
    scale("digits/mlp", to=64, rule="linear", seeds=1, max_seeds=1, recipe=RECIPE, out=tmp_path, quiet=True)
    page = write_report(tmp_path).read_text()
    assert "<summary>3 runs, 3 finished</summary>" in page
    assert "reference/seed-0" in page
    assert "the same prediction for every sample has a test accuracy of 12.67 %" in page.lower()


def test_where_there_is_nothing(tmp_path):
    with pytest.raises(UserError, match="holds no run and no study, nor does a folder below it"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="absent: is not a folder"):
        write_report(tmp_path / "absent")


ATTACK = '"><script>alert(1)</script>$\\foo$'


def test_nothing_from_outside_is_markup(tmp_path, finished):
    """Names of tasks, metrics, folders, fields and reasons, in every kind of report."""
    folder = tmp_path / 'x"><b>$\\foo$'.replace("/", "")
    shutil.copytree(finished[0], folder)
    lines = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    metric = {"name": ATTACK, "unit": ATTACK, "better": "higher", "margin": 0.5}
    lines[0] |= {"task": ATTACK, "metric": metric, "environment": {ATTACK: ATTACK}}
    lines.append({"kind": "batch", "update": 1, "samples": 1, "before": 1, "after": 2, "reason": ATTACK})
    (folder / "record.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "result.json").write_text(json.dumps({**json.loads((folder / "result.json").read_text()), "task": ATTACK}))
    studies = {"noise.json": noise(at_least=True), "critical.json": critical(at_least=True), "branches.json": branches()}
    for name, stored in studies.items():
        words = {"sentence": ATTACK, "doubts": [ATTACK], "sentences": [ATTACK], "notes": [ATTACK]}
        known = {key: value for key, value in words.items() if key in stored}
        own = {"metric": metric} if "metric" in stored else {}
        (folder / name).write_text(json.dumps({**stored, **known, **own, "task": ATTACK}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for place in (folder, tmp_path):
            page = write_report(place).read_text()
            assert "<script" not in page
            assert "<b>" not in page
            assert len(re.findall(r"&lt;script&gt;|%3Cscript", page)) >= 2 or place == tmp_path


def test_a_result_is_stored_though_it_can_not_be_drawn(tmp_path, monkeypatch):
    from tests.cli.command import bigbatch

    command = ["simulate", "--workers", "8", "--model-bytes", "100MB", "--step", "120ms", "--bandwidth", "50Gbit", "--latency", "50us"]
    (tmp_path / "runs/simulate/report.html").mkdir(parents=True)  # in the way
    done = bigbatch(*command, "--json", "out.json", cwd=tmp_path)
    assert "no report: " in done.stderr
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads((tmp_path / "runs/simulate/simulate.json").read_text())


def test_fields_of_runs_stand_below_their_paths(tmp_path, finished, monkeypatch):
    monkeypatch.setattr("bigbatch.report.index.WIDTH", 40)
    run(tmp_path / "other", seed=1, **{"optimizer.lr": 0.05})
    shutil.copytree(finished[0], tmp_path / "one")
    assert "<td>other<br><small>seed=1 lr=0.05</small></td>" in write_report(tmp_path).read_text()
