"""The trainer gives the weights that it gave when they were recorded, bit for bit: recorded_runs.py has the runs, and says how.

On a platform that is in recorded_runs.json every bit counts. On others values may be apart by rounding: some times as far as they were
between the instruction sets, libraries' kernels and threads of the recording (1e-11 of their size in float64, on the whole).
"""

import copy
import json

import pytest
from tests.end_to_end import recorded_runs
from tests.end_to_end.recorded_runs import (
    ALONE,
    JSON,
    RUNS,
    TOGETHER,
    add_digests,
    difference,
    held,
    names_of,
    run_alone,
    run_together,
    this_platform,
    tolerance,
)

import bigbatch

RECORDED = json.loads(JSON.read_text())
NOWHERE = {**RECORDED, "platforms": []}


@pytest.mark.parametrize("name", ALONE)
def test_one_process(name, tmp_path):
    assert not difference(name, run_alone(name, tmp_path / "run"), RECORDED, this_platform())


@pytest.mark.slow
@pytest.mark.parametrize("groups", TOGETHER, ids=", ".join)
def test_several_processes(groups, tmp_path):
    found, said = run_together(groups, tmp_path)
    here = this_platform()
    wrong = [difference(name, found[name], RECORDED, here) if name in found else f"{name}: did not end well" for name in names_of(*groups)]
    assert not any(wrong), "\n".join(filter(None, [*wrong, said]))


def test_what_is_recorded_is_run():
    assert list(RECORDED["runs"]) == list(RUNS)
    assert set(RUNS) == {*ALONE, *names_of(*(group for groups in TOGETHER for group in groups))}
    numbers = {str(number) for number in range(len(RECORDED["platforms"]))}
    whole = [name for name, entry in RECORDED["runs"].items() if entry["digests"].keys() == numbers]
    assert {"sgd", "increase_batch", "all_reduce"} <= set(whole)
    for name, entry in RECORDED["runs"].items():  # one that was added later was not recorded on the first platforms
        assert entry["digests"].keys() in (numbers, {str(n) for n in range(len(numbers) - len(entry["digests"]), len(numbers))}), name
        assert entry["digests"], name


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run.stopped_after is not None])
def test_a_stopped_run_is_recorded_as_one_that_was_not(name):
    straight = name.removesuffix(", resumed")
    assert RUNS[straight].recipe == RUNS[name].recipe
    assert RECORDED["runs"][straight]["digests"] == RECORDED["runs"][name]["digests"]


def test_all_that_a_recipe_can_ask_for_is_run():
    """Each kind of optimizer, warm-up, decay, rule, comm, compression, and what a kind has in several ways."""
    schema, used = bigbatch.Recipe.model_json_schema()["$defs"], set()

    def walk(section):
        for field, value in section.items():
            if isinstance(value, dict):
                walk(value)
            elif isinstance(value, str):
                used.add((field, value))

    for run in RUNS.values():
        walk(run.recipe.to_dict())
    kinds = {(field, facts["const"]) for part in schema.values() for field, facts in part["properties"].items() if "const" in facts}
    ways = {
        (field, way)
        for part, field in (("GossipSection", "method"), ("ParameterServerSection", "mode"), ("LocalSGDSection", "momentum"))
        for way in schema[part]["properties"][field]["enum"]
    }
    assert len(kinds) > 30
    assert kinds | ways <= used


@pytest.mark.parametrize("name", RUNS)
def test_a_rate_or_a_weight_that_is_another_is_noticed_anywhere(name):
    entry = RECORDED["runs"][name]
    assert not difference(name, entry, NOWHERE, None)
    assert tolerance(entry) <= recorded_runs.MOST[entry["precision"]]
    for change in (another_rate, another_weight, another_batch)[: None if RUNS[name].repeats else 1]:
        other = copy.deepcopy(entry)
        change(other["values"], 1 + 2 * tolerance(entry))
        assert "on a platform that was not recorded" in difference(name, other, NOWHERE, None), change


def another_rate(values, times):
    values["rates"][values["rates"].index(max(values["rates"]))] *= times


def another_weight(values, times):
    for weight in values["weights"].values():
        weight[0] *= times


def another_batch(values, times):
    values["batches"][-1] -= 1


def test_other_bits_are_told_by_their_part():
    name, platform = "sgd", RECORDED["platforms"][0]
    entry = RECORDED["runs"][name]
    digests = dict(entry["digests"]["0"])
    assert not difference(name, {**entry, "digests": digests}, RECORDED, platform)
    digests["optimizer"] = ""
    told = difference(name, {**entry, "digests": digests}, RECORDED, platform)
    assert told == "sgd: optimizer: other bits than recorded; values are apart by 0.0e+00"
    assert "is not in recorded_runs.json" in difference("new", entry, RECORDED, platform)


def test_a_run_that_was_not_recorded_on_a_platform_is_compared_to_rounding():
    platform, entry = RECORDED["platforms"][0], RECORDED["runs"]["sgd"]
    later = {**RECORDED, "runs": {"sgd": {**entry, "digests": {"1": entry["digests"]["1"]}}}}
    found = {"values": entry["values"], "digests": {"weights": "", "optimizer": "", "record": ""}}
    assert "other bits" in difference("sgd", found, RECORDED, platform)
    assert not difference("sgd", found, later, platform)
    wrong = copy.deepcopy(found)
    another_rate(wrong["values"], 1 + 2 * tolerance(entry))
    assert "on a platform that was not recorded" in difference("sgd", wrong, later, platform)


def test_runs_are_added_in_their_place_and_others_stay_as_they_are():
    found = {name: {key: entry[key] for key in ("values", "digests", "precision")} for name, entry in RECORDED["runs"].items()}
    fewer = {**RECORDED, "runs": {name: entry for name, entry in RECORDED["runs"].items() if name != "adam"}}
    added = held(copy.deepcopy(fewer), found)
    assert list(added["runs"]) == list(RUNS)
    new = added["runs"].pop("adam")
    assert added == fewer
    assert new == {**found["adam"], "apart": 0.0, "digests": {}}
    added["runs"]["adam"] = new
    here = {"platform": {"torch": "another"}, "runs": {name: {"digests": {"weights": name}} for name in RUNS}}
    for one in (here, {**here, "platform": RECORDED["platforms"][0]}):
        add_digests(added, one)
    number = len(RECORDED["platforms"])
    assert added["platforms"][number] == {"torch": "another"}
    assert added["runs"]["adam"]["digests"] == {str(number): {"weights": "adam"}, "0": {"weights": "adam"}}
    assert added["runs"]["sgd"]["digests"] == {**RECORDED["runs"]["sgd"]["digests"], str(number): {"weights": "sgd"}}


def test_nothing_is_added_where_a_number_has_changed_or_a_run_is_gone():
    found = copy.deepcopy(RECORDED["runs"])
    another_weight(found["lamb"]["values"], 1 + 2 * tolerance(found["lamb"]))
    with pytest.raises(SystemExit, match="nothing written: the numbers have changed\nlamb: values are apart by"):
        held(RECORDED, found)
    with pytest.raises(SystemExit, match="nothing written: no such runs any more: gone; record all anew"):
        held({**RECORDED, "runs": {**RECORDED["runs"], "gone": RECORDED["runs"]["sgd"]}}, RECORDED["runs"])


def test_digests_are_of_bits():
    torch = recorded_runs.torch
    one = {"b": torch.tensor([0.0, 1.0]), "a": [1, 2.5, None]}
    assert recorded_runs.digest(one) == recorded_runs.digest(dict(reversed(one.items())))
    for other in (torch.tensor([-0.0, 1.0]), torch.tensor([0.0, 1.0]).double(), torch.tensor([[0.0, 1.0]])):
        assert recorded_runs.digest({**one, "b": other}) != recorded_runs.digest(one)
