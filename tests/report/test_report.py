import json
import warnings

import pytest
from tests.limited_files import limited_files

from bigbatch import Recipe, fit, scale
from bigbatch.core.checks import InputError, OutputError, RecipeError
from bigbatch.report import write_report
from bigbatch.report.comparison import runs_of as _runs
from bigbatch.report.plots import global_batch


def test_a_run_whose_batch_changes_shows_each_change_and_why(tmp_path):
    recipe = Recipe.named("digits/mlp").replace(
        {"budget.epochs": 3, "batch.micro_batch": 8, "batch.rule": {"kind": "norm_test", "theta": 0.6}}
    )
    fit("digits/mlp", recipe, out=tmp_path, quiet=True, tensorboard=False)
    page = write_report(tmp_path).read_text()
    assert "Changes of the batch" in page
    assert "norm test failed, noise scale" in page
    assert 'aria-label="Global batch by samples"' in page


def test_a_run_with_one_batch_has_no_such_part(tmp_path):
    fit("digits/mlp", Recipe.named("digits/mlp").replace({"budget.epochs": 1}), out=tmp_path, quiet=True, tensorboard=False)
    page = write_report(tmp_path).read_text()
    assert "Changes of the batch" not in page
    assert "Global batch by samples" not in page
    assert "metric" not in json.loads((tmp_path / "record.jsonl").read_text().splitlines()[0])  # as earlier versions left it
    assert "validation accuracy, %" in page


def test_steps_of_the_batch():
    sizes = [32, 32, 32, 64, 64, 20]
    record = [{"kind": "update", "samples": sum(sizes[: i + 1]), "global_batch": b} for i, b in enumerate(sizes)]
    assert global_batch(record, "samples") == ([32.0, 96.0, 160.0, 224.0, 244.0], [32.0, 32.0, 64.0, 64.0, 20.0])


def test_a_comparison_shows_verdict_expectation_and_every_seed_in_its_place(tmp_path):
    recipe = Recipe.named("digits/mlp").replace({"budget.epochs": 1, "seed": 9})
    scale("digits/mlp", to=64, rule="linear", seeds=2, max_seeds=2, recipe=recipe, out=tmp_path, quiet=True)
    page = write_report(tmp_path).read_text()
    assert "2 to 2 seeds an arm, margin 0.5 points: of an arm as good as the reference" in page
    assert "runs of one seed share their initial weights and the order of the data" in page
    assert [run.name for run in _runs(tmp_path / "reference", {"results": [0, 0]})] == ["seed-9", "seed-10"]


def test_a_comparison_of_an_earlier_version_still_has_a_report(tmp_path):
    recipe = Recipe.named("digits/mlp").replace({"budget.epochs": 1})
    scale("digits/mlp", to=64, rule="linear", seeds=1, max_seeds=1, recipe=recipe, out=tmp_path, quiet=True)
    (path,) = tmp_path.glob("*.comparison.json")
    stored = json.loads(path.read_text())
    del stored["design"], stored["expectation"]
    path.write_text(json.dumps(stored))
    assert "linear at 64" in write_report(tmp_path).read_text()


def short_run(folder):
    fit("digits/mlp", Recipe.named("digits/mlp").replace({"budget.epochs": 1}), out=folder, quiet=True, tensorboard=False)
    return folder / "record.jsonl"


def test_a_run_whose_record_lost_its_first_line(tmp_path):
    path = short_run(tmp_path)
    path.write_bytes(path.read_bytes().split(b"\n", 1)[1])
    assert "digits/mlp: one run at 32" in write_report(tmp_path).read_text()


def test_a_run_whose_record_is_damaged_shows_what_there_is(tmp_path):
    path = short_run(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], b"\0" * 100 + b"\n", *lines[6:]]))
    with pytest.warns(UserWarning, match=r"record.jsonl: 1 line is damaged \(line 6: .*\), \d+ can be read"):
        assert "digits/mlp: one run at 32" in write_report(tmp_path).read_text()


@pytest.mark.parametrize("content", [b"", b"12", b"\xff\n"])
def test_a_run_whose_record_holds_nothing(tmp_path, content):
    short_run(tmp_path).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match=r"record.jsonl: holds no line that can be read; continue the run with --resume, or restore"):
            write_report(tmp_path)


def test_a_run_without_its_recipe(tmp_path):
    path = short_run(tmp_path)
    (tmp_path / "recipe.toml").unlink()
    assert "digits/mlp: one run at 32" in write_report(tmp_path).read_text()
    path.write_bytes(path.read_bytes().split(b"\n", 1)[1])
    with pytest.raises(RecipeError, match=r"recipe.toml: can't be read: No such file or directory; check the path"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: c.pop("arms"), "no arms"),
        (lambda c: c["arms"].pop(), r"arms = .*: list should have at least 3 items"),
        (lambda c: c["arms"][0].update(folder="../x" + "y" * 300), "arms.0.folder = "),
        (lambda c: c["arms"][0]["results"][0].update(updates="x"), "arms.0.results.0.updates = 'x': input should be a valid integer"),
        (lambda c: c.update(changes=[{}]), "no changes.0.field"),
    ],
)
def test_a_comparison_that_is_damaged(tmp_path, change, why):
    recipe = Recipe.named("digits/mlp").replace({"budget.epochs": 0.1})
    scale("digits/mlp", to=64, rule="linear", seeds=1, max_seeds=1, recipe=recipe, out=tmp_path, quiet=True)
    (path,) = tmp_path.glob("*.comparison.json")
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))
    with pytest.raises(InputError, match=rf"{path.name}: is damaged: {why}.*; type the `bigbatch scale` that wrote it again") as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "{}", '{"runs": 3, "path": []}', '{"runs": [], "path": []}'])
def test_a_measurement_of_curvature_that_is_damaged(tmp_path, content):
    short_run(tmp_path)
    (tmp_path / "curvature.json").write_text(content)
    with pytest.raises(InputError, match=r"curvature.json: is damaged.*; measure again with `bigbatch curvature`"):
        write_report(tmp_path)


def test_a_disk_that_is_full(tmp_path):
    short_run(tmp_path)
    with limited_files(1000), pytest.raises(OutputError, match=r"can't write .*report.html .*: File too large; nothing was written"):
        write_report(tmp_path)
