import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigbatch import Recipe, UserError
from bigbatch.core.metric import ACCURACY
from bigbatch.study.all_runs.table import RunRow, RunsTable

RECIPE = Recipe.named("digits/mlp")


def run(path, state="finished", score=None, changes=None, **rest):
    fields = RECIPE.replace(changes or {}).to_flat_dict()
    return RunRow(
        path, state, task="digits/mlp", fields=fields, metric=ACCURACY, score=score, split="test" if score is not None else "", **rest
    )


TABLE = RunsTable(
    "runs",
    (
        run("a", score=0.9, changes={"optimizer.lr": 0.1, "schedule.warmup.epochs": 2.0, "seed": 1}, updates=1200, seconds=2.5),
        run("b", score=0.95, changes={"optimizer.lr": 0.02, "schedule.warmup.epochs": 2.0}, updates=400, seconds=1000.0),
        run("c", "stopped", changes={"optimizer.name": "adam", "optimizer.lr": 10.0, "schedule.warmup.kind": "none"}, updates=7),
        RunRow("d", "damaged", "result.json: is damaged"),
    ),
)


def test_only_the_fields_that_differ_by_their_shortest_names():
    assert TABLE.labels.items() >= {"seed": "seed", "lr": "optimizer.lr", "optimizer": "optimizer.name", "betas": "optimizer.betas"}.items()
    assert (TABLE.labels["warmup"], TABLE.labels["warmup.epochs"]) == ("schedule.warmup.kind", "schedule.warmup.epochs")
    assert not {"task", "num_train_samples", "precision", "global_batch", "epochs"} & set(TABLE.labels)


def test_one_run_differs_in_nothing():
    assert RunsTable("runs", TABLE.runs[:1]).differing == ()
    assert RunsTable("runs", (TABLE.runs[0], TABLE.runs[3])).differing == ()  # a recipe that can't be read is none


def test_a_fields_name_is_never_a_columns():
    pair = RunsTable("runs", tuple(run(name, changes={"budget.epochs": None, "budget.updates": n}) for name, n in (("a", 1), ("b", 2))))
    assert pair.labels == {"budget.updates": "budget.updates"}
    assert [r.path for r in pair.sorted_by("-budget.updates").runs] == ["b", "a"]


@pytest.mark.parametrize(
    ("column", "order"),
    [
        ("run", "abcd"),
        ("-run", "dcba"),
        ("score", "abcd"),
        ("-score", "bacd"),
        ("updates", "cbad"),
        ("-seconds", "bacd"),
        ("state", "abcd"),
        ("-state", "dcab"),
        ("lr", "bacd"),
        ("-lr", "cabd"),
        ("optimizer.lr", "bacd"),
        ("optimizer", "cabd"),
        ("-warmup.epochs", "abcd"),
        ("precision", "abcd"),
    ],
)
def test_sorted_by_any_column_with_what_has_no_value_last(column, order):
    assert "".join(r.path for r in TABLE.sorted_by(column).runs) == order


def test_an_unknown_column_is_refused_with_those_that_there_are():
    with pytest.raises(UserError, match=r"--sort -scor: unknown column 'scor': did you mean 'score'\? known: run, score, updates, .*lr"):
        TABLE.sorted_by("-scor")


def test_a_wide_terminal_has_a_column_for_each_field():
    table = TABLE.table(300)
    assert table.columns == ["run", *TABLE.labels, "accuracy, %", "updates", "seconds", "state"]
    first, last = (dict(zip(table.columns, row, strict=True)) for row in (table.rows[0], table.rows[3]))
    assert (first["lr"], first["seed"], first["betas"], first["accuracy, %"]) == ("0.1", "1", "-", "90.00")
    assert (first["updates"], first["seconds"]) == ("1,200", "2.5")
    assert set(last.values()) == {"d", "-", "damaged"}
    assert table.title == "runs: 4 runs, 2 finished, 1 stopped, 1 damaged"
    assert table.numbers == {*TABLE.labels, "accuracy, %", "updates", "seconds"}


def test_a_narrow_one_has_the_fields_below_each_path_and_loses_none():
    table = TABLE.table(80)
    assert table.columns == ["run", "accuracy, %", "updates", "seconds", "state"]
    name, *below = table.rows[2][0].split("\n")
    assert name == "c"
    assert all(line.startswith("  ") for line in below)
    told = dict(word.split("=") for line in below for word in line.split())
    assert told["betas"] == "0.9,0.999"
    assert told.keys() == {label for label, name in TABLE.labels.items() if name in TABLE.runs[2].fields}
    assert table.rows[3][0] == "d"


def width(table):
    rows = [table.columns, *([line for cell in row[:1] for line in [max(cell.split("\n"), key=len)]] + row[1:] for row in table.rows)]
    return sum(max(map(len, column)) + 3 for column in zip(*rows, strict=True)) + 1


VALUES = st.one_of(st.floats(), st.integers(), st.booleans(), st.text(max_size=9), st.tuples(st.floats(), st.floats()))
FIELDS = st.dictionaries(st.from_regex(r"[a-z]{1,9}(\.[a-z]{1,9}){0,2}", fullmatch=True), VALUES, max_size=6)
ROWS = st.builds(
    RunRow,
    path=st.from_regex(r"[a-z/-]{1,20}", fullmatch=True),
    state=st.sampled_from(["finished", "running", "stopped", "diverged", "damaged"]),
    fields=FIELDS,
    score=st.none() | st.floats(0, 1),
    split=st.sampled_from(["test", "validation", ""]),
    updates=st.none() | st.integers(0, 99_999),
    seconds=st.none() | st.floats(0, 9999),
)


@settings(max_examples=50)
@given(st.lists(ROWS, max_size=3), st.booleans())
def test_any_runs_fit_80_columns_and_can_be_read_by_programs(rows, falls):
    table = RunsTable("runs", tuple(rows))
    assert width(table.table(80)) <= 80
    stored = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert [each["run"] for each in stored["runs"]] == [row.path for row in rows]
    header, *lines = csv.reader(io.StringIO(table.to_csv()))
    assert len(header) == len(set(header)) == 1 + len(table.differing) + 6
    assert [line[0] for line in lines] == [row.path for row in rows]
    for column in ("run", "score", "updates", "seconds", "state", *table.labels):
        again = table.sorted_by(f"{'-' if falls else ''}{column}").runs
        assert sorted(map(id, again)) == sorted(map(id, rows))


def test_words_say_what_cells_mean():
    rows = (run("a", score=0.5), RunRow("b", "stopped", score=0.5, split="validation"), TABLE.runs[3])
    said = list(RunsTable("runs", rows, unreadable=("w", "x", "y", "z")).words())
    assert said == [
        "val: of the validation set, where the test set was not used",
        "stopped: can be resumed, by the same command and --resume",
        "d: result.json: is damaged",
        "may not be read: w, x, y and 1 more",
    ]
    assert list(RunsTable("runs", rows[:1]).words()) == []


def test_the_score_has_its_name_where_all_share_it():
    own = RunRow("a", "finished", task="mine:Task", score=0.5, split="test")
    assert RunsTable("runs", TABLE.runs).metric == ACCURACY
    assert RunsTable("runs", (*TABLE.runs, own)).metric is None
    assert str(RunsTable("runs", (own,)).metric) == str(RunsTable("runs", ()).metric) == "score"


def test_csv_has_full_names_and_plain_values():
    header, first, *_, last = csv.reader(io.StringIO(TABLE.to_csv()))
    named = dict(zip(header, first, strict=True))
    assert (named["optimizer.lr"], named["score"], named["updates"], named["state"]) == ("0.1", "0.9", "1200", "finished")
    assert named["optimizer.nesterov"] == "true"
    assert dict(zip(header, last, strict=True))["note"] == "result.json: is damaged"


def test_json_has_what_all_have_in_common_once():
    stored = TABLE.to_dict()
    assert stored["common"]["batch.global_batch"] == 32
    assert not stored["common"].keys() & set(stored["differing"])
    assert set(stored["runs"][0]["fields"]) == set(stored["differing"])
    assert stored["runs"][2]["fields"]["optimizer.betas"] == [0.9, 0.999]
    assert stored["runs"][3]["score"] is None
    assert stored["metric"] == "accuracy"
