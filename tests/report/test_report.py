import json

from bigbatch import Recipe, fit, scale
from bigbatch.report import write_report
from bigbatch.report.plots import global_batch
from bigbatch.report.report import _runs


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
