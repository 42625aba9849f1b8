"""The plot of a simulation, from what it stores."""

import json
import xml.etree.ElementTree as ElementTree

from bigbatch.report.simulate import SHOWN, draw_simulation, write_simulation
from bigbatch.simulate.case import Case
from bigbatch.simulate.link import Link, link_of
from bigbatch.simulate.strategies import STRATEGIES
from bigbatch.study.simulate.simulate import simulate

LINK = link_of(bandwidth_bytes_per_s=6.25e9, latency_s=50e-6)


def test_shows_every_line_and_number(tmp_path):
    stored = json.loads(json.dumps(simulate(Case(256, LINK, 1e8, 0.12)).to_dict()))
    path = write_simulation(stored, tmp_path)
    svg = path.read_text()
    assert path.name == "simulate.svg"
    assert ElementTree.fromstring(svg).attrib["aria-label"] == "100 MB, 120 ms a step, 50 Gbit/s, 50 µs"
    for text in (*SHOWN, "256", "workers (log)", "efficiency of an update, %"):
        assert text in svg, text
    assert svg == draw_simulation(stored)  # nothing of the moment in it


def test_what_is_not_drawn_is_named():
    """Before, half of the strategies were left out without a word."""
    stored = simulate(Case(256, LINK, 1e8, 0.12)).to_dict()
    svg, drawn = draw_simulation(stored), {row["strategy"] for row in stored["rows"]}
    assert "not drawn, in the table: " in svg
    assert not [name for name in drawn if name not in svg]


def test_only_strategies_are_shown():
    assert set(SHOWN) <= set(STRATEGIES)


def test_one_number_of_workers_and_no_end_of_bandwidth():
    assert "any bandwidth" in draw_simulation(simulate(Case(1, Link(0.0, 0.0), 1e8, 0.12)).to_dict())


def test_a_way_that_is_never_done_has_no_line():
    """Between losses of 0.88 s, no ring over 4,096 is."""
    far = link_of(bandwidth_bytes_per_s=125e6, latency_s=0.1)
    svg = draw_simulation(simulate(Case(4096, far, 2e9, 1.0, lost_every_s=3600.0), workers=[1024, 4096]).to_dict())
    assert "noloco" in svg
    assert "ring_all_reduce" not in svg
