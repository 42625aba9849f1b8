"""The curvature of runs from the command line; what is measured, and what is refused, is in tests/study/curvature/test_curvature.py."""

import json
import re

from tests.cli.command import bigbatch

from bigbatch import Recipe, fit

FEW = ["--samples", "64", "--eigenvalues", "2", "--points", "4"]


def test_a_run_that_looks_on_the_way_then_two_side_by_side(tmp_path):
    looks = [f"curvature.{setting}" for setting in ("every_updates=20", "samples=64", "trace=0.2")]
    settings = [word for setting in ("model.hidden=8", "budget.epochs=2", *looks) for word in ("--set", setting)]
    done = bigbatch("train", "digits/mlp", *settings, "--keep-checkpoints", "--quiet", "--out", "small", cwd=tmp_path)
    assert re.search(r"samples/s, curvature another \d+\.\d s \(\d+\.\d %\)", done.stdout)
    large = Recipe.named("digits/mlp").replace({"model.hidden": 8, "budget.epochs": 2, "batch.global_batch": 128})
    fit("digits/mlp", large, out=tmp_path / "large", keep_checkpoints=True, quiet=True, tensorboard=False)

    done = bigbatch("curvature", "small", "--against", "large", *FEW, "--json", "found.json", cwd=tmp_path)
    for part in ("small", "large", "eigenvalue 2", "residual", "trace [95 %]", "Keskar, all directions, epsilon 0.0005", "second / first"):
        assert part in done.stdout, part
    assert "curvature  1/10  top eigenvalues of small" in done.stderr, "plain lines where there is no terminal"
    assert len(json.loads((tmp_path / "small" / "curvature.json").read_text())["runs"]) == 2
    found = json.loads((tmp_path / "found.json").read_text())  # the folder's file has the machine and the settings too
    assert found.items() <= json.loads((tmp_path / "small" / "curvature.json").read_text()).items()
    page = (tmp_path / "small" / "report.html").read_text()
    plots = set(re.findall(r'aria-label="([^"]+)"', page))
    assert plots > {"Top eigenvalue by updates", "Trace by updates", "Spectral density of the Hessian"}
    assert re.search(r"5 looks at the curvature took \d+\.\d s, \d+\.\d % of the time in updates; \d+ products", page)
