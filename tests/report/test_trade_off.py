"""The plot of the trade-off, from what a study stores."""

import copy
import json
import xml.etree.ElementTree as ElementTree

import pytest

from bigbatch import Recipe
from bigbatch.report.trade_off import draw_trade_off, write_trade_off
from bigbatch.study.critical.study import CriticalStudy, Point, Trial


def point(batch, *updates, reached=True):
    runs = tuple(Trial(0.1, seed, each, reached, False, 0.9, 1.0) for seed, each in enumerate(updates))
    return Point(batch, 0.1, False, runs, runs[:1])


POINTS = (point(16, 725, 740), point(64, 256, 262), point(256, 140, 138), point(1024, 90, reached=False))
STUDY = CriticalStudy("digits/mlp", "accuracy", 0.9, Recipe.named("digits/mlp"), POINTS, noise=80.0)


def test_shows_points_fit_band_and_prediction(tmp_path):
    path = write_trade_off(json.loads(json.dumps(STUDY.to_dict())), tmp_path)
    svg = path.read_text()
    assert path.name == "critical.svg"
    assert ElementTree.fromstring(svg).attrib["aria-label"] == "digits/mlp: to accuracy 90 % on validation data"
    for text in ("16", "1,024", "fit, critical batch", "95 % band", "noise scale 80 as critical batch", "stopped before", "samples to the"):
        assert text in svg, text
    assert svg == draw_trade_off(STUDY.to_dict())  # nothing of the moment in it


@pytest.mark.parametrize("kept", [POINTS[:2], (), (point(16, 90, reached=False), *POINTS[:1])], ids=["two", "none", "stopped"])
def test_a_study_without_a_fit_shows_what_there_is(kept):
    stored = CriticalStudy("t", "accuracy", 0.9, STUDY.recipe, kept).to_dict()
    assert stored["fit"] is None
    assert "fit, critical" not in draw_trade_off(stored)


def test_an_infinite_critical_batch_is_drawn_too():
    endless = tuple(point(batch, 100_000 // batch) for batch in (16, 64, 256))
    stored = CriticalStudy("t", "accuracy", 0.9, STUDY.recipe, endless).to_dict()
    assert stored["fit"]["critical_batch"]["value"] is None
    assert ">fit<" in draw_trade_off(stored)
    broken = copy.deepcopy(stored)
    broken["points"][0]["runs"][0]["diverged"] = True
    assert len(draw_trade_off(broken)) < len(draw_trade_off(stored))
