"""What a plot does with names from outside, with values that a logarithmic axis has not, and with values of which one side is known."""

import re
import warnings
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest
from matplotlib.figure import Figure
from tests.report.stored import branches, critical, noise

from bigbatch.report.branches import draw_branches
from bigbatch.report.curvature import draw_density
from bigbatch.report.noise import draw_noise
from bigbatch.report.plots import DARK, SVG_STYLE, draw, learning_rate, to_svg, training_loss, validation_score
from bigbatch.report.trade_off import draw_trade_off

HOLLOW = "fill: #ffffff; stroke: #"
NAMES = [
    "\u7cbe\u5ea6",
    "\U0001f600",
    "long " * 80,
    '"><script>alert(1)</script>',
    "run_$\\foo$",
    "a\x00b\x1b",
    "\ud800",
    "_hidden",
    "$x$ & <b>",
    "'\"`",
]


def update(n, loss=1.0, samples=None):
    return {"kind": "update", "update": n, "samples": samples or 32 * n, "loss": loss, "lr": 0.1, "global_batch": 32}


def evaluation(n, score):
    return {"kind": "evaluation", "split": "validation", "update": n, "samples": 32 * n, "score": score}


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_text(name):
    """A backslash between dollars ended `curvature` after all of its measuring; a name with _ was missing in the legend."""
    figure = Figure()
    axes = figure.add_subplot()
    axes.set_ylabel(f"{name}, {name}")
    axes.text(0.5, 0.5, name)
    svg = to_svg(figure, f"Validation {name} by samples")
    root = ElementTree.fromstring(svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"].startswith("Validation ")
    assert "<script" not in svg
    drawn = draw({name: [[update(1), update(2)]]}, training_loss, against="samples", ylabel=name, title=name)
    assert len(ElementTree.fromstring(drawn).findall(".//*[@id='legend_1']")) == 1
    drawn.encode()


def test_names_of_runs_in_a_plot_of_curvature():
    density = {"x": [0.0, 1.0], "mean": [1.0, 0.1], "low": [0.9, 0.0], "high": [1.1, 0.2]}
    stored = {"names": ["run_$\\foo$", "_b"], "runs": [{"density": density, "eigenvalues": [1.0]}] * 2}
    svg = draw_density(stored)
    assert "run_$\\foo$" in svg
    assert "mathdefault" not in svg  # the marks of a logarithmic axis
    ElementTree.fromstring(svg)


@pytest.mark.parametrize(
    "record",
    [
        [update(1, 0.0), update(2, 0.0)],
        [update(1, 1.0), update(2, 0.0)],
        [update(1, -1.0), update(2, 2.0)],
        [update(1, 1.0)],
        [update(1, 1.0), update(2, 1.0)],
        [],
    ],
    ids=["zero", "to zero", "below", "one", "equal", "none"],
)
@pytest.mark.parametrize("against", ["samples", "update"])
def test_losses_that_a_logarithmic_axis_has_not_are_drawn_without_a_warning(record, against):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for points in (training_loss, learning_rate):
            ElementTree.fromstring(draw({"run": [record]}, points, against=against, ylabel="y", title="t"))


@pytest.mark.parametrize("record", [[], [evaluation(0, 0.5)], [evaluation(3, 0.5)]], ids=["none", "at the start", "one"])
def test_an_axis_of_counts_begins_at_zero(record):
    """Before, it went from -0.04 to 0.04, marked as -40m."""
    for against in ("samples", "update"):
        svg = draw({"run": [record]}, validation_score, against=against, ylabel="y", title="t")
        texts = [text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]
        assert not [text for text in texts if re.fullmatch(r"[-−]?\d+m|[-−]0?\.\d+", text)], texts


def test_what_is_known_on_one_side_only_is_hollow_with_an_arrow():
    for draw_it, stored in ((draw_noise, noise), (draw_branches, branches), (draw_trade_off, critical)):
        known, at_least = draw_it(stored(at_least=False)), draw_it(stored(at_least=True))
        assert HOLLOW not in known, draw_it.__name__
        assert HOLLOW in at_least, draw_it.__name__


def test_a_study_by_branches_without_a_critical_batch_says_so():
    svg = draw_branches(branches(value=0.0))
    assert "no critical batch was found" in svg
    assert "m</text>" not in svg


def test_plots_follow_the_readers_preference_for_dark_pages():
    with matplotlib.rc_context(SVG_STYLE):
        svg = draw({"a": [[update(1), update(2, 0.5)]]}, training_loss, against="samples", ylabel="y", title="t")
    assert svg.count("prefers-color-scheme: dark") == 1
    used = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg.split("</style>", 1)[1]))
    assert used - set(DARK) <= {"#b0b0b0"}  # the grid, which both have
