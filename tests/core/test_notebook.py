"""How values look in a notebook: short as text, escaped as HTML, in pandas as measured."""

import json
import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from tests.report.stored import RECIPE, branches, critical, noise

from bigbatch import Recipe, Result, UserError, plan
from bigbatch.core.notebook import ROWS, Content, Displayed, Plot
from bigbatch.noise.estimate import NoiseEstimate
from bigbatch.simulate.case import Case
from bigbatch.simulate.link import link_of
from bigbatch.study.all_runs.runs import runs
from bigbatch.study.critical.study import CriticalStudy, Point, Trial
from bigbatch.study.noise import NoiseStudy, Stretch
from bigbatch.study.simulate.simulate import simulate

ATTACK = '<script>alert(1)</script>"&'
ESTIMATE = NoiseEstimate(50.0, 40.0, 65.0, 1.0, 50.0, 100)
TRIALS = tuple(Trial(0.1, seed, 90, True, False, 0.9, 1.0) for seed in range(9))
VALUES = {
    "Recipe": RECIPE,
    "Plan": plan(RECIPE, global_batch=256, rule="legw"),
    "Result": Result("digits/mlp", 1, 32, test_score=0.5, train_s=0.1),
    "NoiseStudy": NoiseStudy("digits/mlp", RECIPE, (Stretch(0, 100, {"all": ESTIMATE}),), ESTIMATE),
    "CriticalStudy": CriticalStudy("digits/mlp", "accuracy", 0.9, RECIPE, tuple(Point(b, 0.1, False, TRIALS, TRIALS) for b in (8, 32))),
    "Simulation": simulate(Case(8, link_of(bandwidth_bytes_per_s=6e9, latency_s=5e-5), 1e8, 0.1)),
}


@pytest.mark.parametrize("name", VALUES)
def test_text_is_a_line_and_html_a_table(name):
    """Before, each printed thousands of characters."""
    value = VALUES[name]
    assert re.fullmatch(rf"{name}\([^\n]{{10,}}\)", repr(value))
    assert len(repr(value)) <= 161
    assert "<table>" in ElementTree.tostring(ElementTree.fromstring(f"<div>{value._repr_html_()}</div>")).decode()


@pytest.mark.parametrize("name", VALUES)
def test_rows_in_pandas(name):
    pytest.importorskip("pandas")
    frame, content = VALUES[name].to_pandas(), VALUES[name].shown()
    assert list(frame.columns) == list(content.columns)
    assert len(frame) == len(content.rows) > 0


def test_pandas_holds_numbers_as_measured():
    pytest.importorskip("pandas")
    frame = VALUES["NoiseStudy"].to_pandas()
    assert frame.loc[0, "noise_scale"] == 50.0
    assert frame["upper"].dtype.kind == "f"


def test_without_pandas_a_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="to_pandas needs pandas, which is not installed: pip install pandas; or use to_dict"):
        VALUES["Plan"].to_pandas()


@pytest.mark.parametrize("name", [name for name in VALUES if name != "Result"])
def test_plots(name, tmp_path):
    plot = VALUES[name].plot()
    assert ElementTree.fromstring(plot.svg).attrib["role"] == "img"
    assert len(repr(plot)) < 60
    plot.save(tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text() == plot.svg == plot._repr_html_()


def test_a_result_needs_the_folder_of_its_run_and_says_so():
    with pytest.raises(UserError, match=r"give the folder of the run: result\.plot\(out\)"):
        VALUES["Result"].plot()


def test_what_has_no_plot_says_so(tmp_path):
    with pytest.raises(UserError, match="RunsTable: has no plot"):
        runs(tmp_path).plot()


class Any(Displayed):
    def shown(self):
        return Content([ATTACK, "second"], [ATTACK], [[ATTACK]] * (ROWS + 2))


def test_whatever_it_holds_is_text_and_much_of_it_is_cut():
    page = Any()._repr_html_()
    assert "<script" not in page
    assert page.count("<tr>") == ROWS + 1
    assert "and 2 further rows: to_pandas()" in page


def test_a_recipe_s_text_tells_recipes_apart():
    assert str(RECIPE) == repr(RECIPE) == "Recipe(digits/mlp: sgd, lr 0.1, global batch 32, 20 epochs = 811 updates, seed 0)"
    assert repr(RECIPE.replace({"seed": 1})) != repr(RECIPE)
    assert Recipe.from_toml(RECIPE.to_toml()) == RECIPE


def test_stored_studies_of_the_tests_are_what_studies_store():
    """So that the tests of reports read what is written."""
    assert json.loads(json.dumps(VALUES["NoiseStudy"].to_dict())).keys() == noise(at_least=False).keys()
    assert VALUES["CriticalStudy"].to_dict().keys() == critical(at_least=False).keys()
    assert {"points", "sentences", "notes"} <= branches().keys()
    assert isinstance(VALUES["Plan"].plot(), Plot)
