"""Trials of a batch: which are stopped and when, what is kept, and who goes on with what another process began."""

import math
import multiprocessing
import sqlite3

import optuna
import pytest
from tests.limits import LIMIT_S

from bigbatch import UserError
from bigbatch.study.steps import storage as module
from bigbatch.study.steps.space import Choice, Range, sobol
from bigbatch.study.steps.storage import Storage, StoredTrials
from bigbatch.study.steps.trials import BRACKET, KEPT, MOST_ASKED, SLACK, Bench, Outcome, expected_runs, run_trials

SPACE = (Range("optimizer.lr", 0.01, 1.0), Range("optimizer.momentum", 0.0, 0.99, "log of 1 - value"), Choice("x.y", (1, 2)))


def url(folder):
    return f"sqlite:///{folder / 'trials.db'}"


def opened(folder, *, name="batch 8", space=SPACE, shared=False, asked=None):
    return StoredTrials(Storage(url(folder), shared=shared), name, space, longest=900, seed=5, asked=asked or {"target": 0.9})


class Runs:
    """A trial needs 100 updates at lr = 0.1, more by the square of the distance in decades; scores tell how near it is."""

    def __init__(self, diverges=lambda values: False, stop_after=math.inf):
        self.calls, self.diverges, self.stop_after = [], diverges, stop_after

    def needed(self, values):
        return round(100 * (1 + math.log10(values["optimizer.lr"] / 0.1) ** 2 * 20))

    def __call__(self, wanted):
        self.calls.append(wanted)
        if len(self.calls) > self.stop_after:
            raise KeyboardInterrupt
        found = []
        for values, _, limit in wanted:
            needed = self.needed(values)
            dead = self.diverges(values)
            found.append(Outcome(min(needed, limit), needed <= limit and not dead, dead, min(limit / needed, 1.0)))
        return found

    @property
    def cost(self):
        return sum(min(self.needed(values), limit) for wanted in self.calls for values, _, limit in wanted)


def bench(runs, longest=900, halves=True):
    return Bench(runs, lambda score: math.inf if score is None else -score, longest, halves)


def test_points_are_those_of_the_sequence_by_number(tmp_path):
    trials = run_trials(opened(tmp_path), 20, bench(Runs()))
    assert len(trials) == 20
    for number, trial in enumerate(trials):
        point = sobol(number, 3, 5)
        assert trial.values == {each.field: each.at(x) for each, x in zip(SPACE, point, strict=True)}
        assert trial.seed == 5 + number


def test_trials_are_halved(tmp_path):
    runs = Runs()
    trials = run_trials(opened(tmp_path), BRACKET, bench(runs))
    assert [[limit for _, _, limit in wanted] for wanted in runs.calls] == [
        [100] * 16,
        [300] * 6,
    ]  # a ninth of 900, a third; four reached it
    ranked = sorted(trials, key=lambda trial: runs.needed(trial.values))
    assert [trial.outcome for trial in ranked] == ["reached"] * KEPT + ["stopped"] * 12
    assert [trial.updates for trial in ranked[:KEPT]] == [runs.needed(trial.values) for trial in ranked[:KEPT]]
    assert {trial.updates for trial in ranked[KEPT : KEPT + 2]} == {300}
    assert {trial.updates for trial in ranked[KEPT + 2 :]} == {100}


def test_the_last_of_a_bracket_run_to_the_limit_of_the_best(tmp_path):
    runs = Runs()
    trials = run_trials(opened(tmp_path), BRACKET, bench(runs, longest=240))
    limits = [[limit for _, _, limit in wanted] for wanted in runs.calls]
    assert limits == [[27] * 16, [80] * 6, [240] * 4]
    ends = sorted((trial for trial in trials if runs.needed(trial.values) <= 240), key=lambda trial: trial.updates)
    assert [trial.outcome for trial in ends] == ["reached"] * len(ends)


def test_without_halving_each_runs_to_its_end(tmp_path):
    runs = Runs()
    trials = run_trials(opened(tmp_path), BRACKET, bench(runs, halves=False))
    assert [[limit for _, _, limit in wanted] for wanted in runs.calls] == [[900] * BRACKET]
    assert all((trial.outcome == "reached") == (runs.needed(trial.values) <= 900) for trial in trials)


def test_a_later_bracket_knows_the_fewest_updates(tmp_path):
    runs = Runs()
    run_trials(opened(tmp_path), 2 * BRACKET, bench(runs))
    second = next(i for i, wanted in enumerate(runs.calls) if wanted[0][1] == 5 + BRACKET)
    fewest = min(runs.needed(values) for wanted in runs.calls[:second] for values, _, _ in wanted if runs.needed(values) <= 900)
    assert max(limit for wanted in runs.calls[second:] for _, _, limit in wanted) <= math.ceil(SLACK * fewest)


def test_diverged_trials_are_kept_and_do_not_count(tmp_path):
    trials = run_trials(opened(tmp_path), 12, bench(Runs(diverges=lambda values: values["optimizer.lr"] > 0.3)))
    assert sum(trial.outcome != "diverged" for trial in trials) == 12
    dead = [trial for trial in trials if trial.outcome == "diverged"]
    assert dead
    assert all(trial.values["optimizer.lr"] > 0.3 for trial in dead)
    none = run_trials(opened(tmp_path, name="batch 16"), 4, bench(Runs(diverges=lambda values: True)))
    assert len(none) == 4 * MOST_ASKED


def test_a_stopped_study_goes_on_with_the_trials_that_are_missing(tmp_path):
    straight = run_trials(opened(tmp_path, name="straight"), 2 * BRACKET, bench(Runs()))
    with pytest.raises(KeyboardInterrupt):
        run_trials(opened(tmp_path), 2 * BRACKET, bench(Runs(stop_after=3)))
    stored = opened(tmp_path)
    assert len(stored.ended()) == BRACKET + 10  # of the second bracket, those that were left out after its first runs
    again = run_trials(stored, 2 * BRACKET, bench(Runs()))
    assert sorted(str(trial.values) for trial in again) == sorted(str(trial.values) for trial in straight)
    assert run_trials(opened(tmp_path), 2 * BRACKET, bench(Runs(stop_after=0))) == again


def test_trials_of_a_killed_process_are_made_again(tmp_path):
    stored = opened(tmp_path)
    for _ in range(3):  # begun, and never told
        stored._study.ask(module._distributions(SPACE))
    begun = [trial.params for trial in stored._running()]
    trials = run_trials(opened(tmp_path), 8, bench(Runs()))
    assert [trial.values for trial in trials[:3]] == begun
    assert len(trials) == 8


def one_process(folder, done):
    found = run_trials(opened(folder, shared=True), 24, bench(Runs()))
    done.put(len(found))


def test_processes_share_a_data_base(tmp_path):
    Storage(url(tmp_path), shared=True)
    context = multiprocessing.get_context("spawn")
    done = context.Queue()
    processes = [context.Process(target=one_process, args=(tmp_path, done)) for _ in range(2)]
    for process in processes:
        process.start()
    assert min(done.get(timeout=LIMIT_S) for _ in processes) >= 24
    for process in processes:
        process.join(LIMIT_S)
    trials = opened(tmp_path, shared=True).ended()
    assert 24 <= len(trials) <= 24 + BRACKET  # both may ask at once
    assert len({str(trial.values) for trial in trials}) == len(trials)


def test_trials_of_a_process_that_is_not_heard_of_are_taken_over(tmp_path, monkeypatch):
    stored = opened(tmp_path, shared=True)
    with monkeypatch.context() as patch, stored.ask(2) as asked:
        begun = [dict(trial.params) for trial in asked]
        patch.setattr(StoredTrials, "_give_back", lambda self, trials: None)  # killed: it can't
        del patch
    with sqlite3.connect(tmp_path / "trials.db") as data:
        data.execute("update trial_heartbeats set heartbeat = datetime('now', '-1 hour')")
    trials = run_trials(opened(tmp_path, shared=True), 6, bench(Runs()))
    assert [trial.values for trial in trials[:2]] == begun
    assert len(trials) == 6


def test_who_comes_later_searches_what_the_first_began(tmp_path):
    """It may have seen another best trial at the batch before; before, it was refused."""
    first = opened(tmp_path, shared=True)
    other = (SPACE[0]._replace(low=0.02, high=2.0), *SPACE[1:])
    later = StoredTrials(Storage(url(tmp_path), shared=True), "batch 8", other, longest=1000, seed=5, asked={"target": 0.9})
    assert (later.space, later.longest) == (first.space, 900) == (SPACE, 900)
    trials = run_trials(later, 4, bench(Runs()))
    assert [trial.values["optimizer.lr"] for trial in trials] == [SPACE[0].at(sobol(number, 3, 5)[0]) for number in range(4)]


def test_a_data_base_that_goes_away_is_told(tmp_path):
    def use_it_while_it_goes():
        with Storage(url(tmp_path), shared=False) as held:
            stored = StoredTrials(held, "batch 8", SPACE, longest=900, seed=5, asked={})
            with sqlite3.connect(tmp_path / "trials.db") as data:
                data.execute("drop table trials")
            run_trials(stored, 4, bench(Runs()))

    with pytest.raises(UserError, match=r"trials.db: is lost \(.*no such table.*\); the same command goes on"):
        use_it_while_it_goes()


def test_other_arguments_are_refused(tmp_path):
    opened(tmp_path)
    with pytest.raises(UserError, match="batch 8: was begun with another target; give another --out or --storage"):
        opened(tmp_path, asked={"target": 0.91})


def test_storages_that_can_not_be_used(tmp_path):
    with pytest.raises(UserError, match="storage nothing: can't be used"):
        Storage("nothing", shared=True)
    with pytest.raises(UserError, match=r"storage host/name: needs a driver that is not installed"):
        Storage("oracle://user:secret@host/name", shared=True)
    with pytest.raises(UserError, match="can't be used"):
        Storage(f"sqlite:///{tmp_path}/no/such/folder.db", shared=False)


def test_optuna_reads_what_is_stored(tmp_path):
    run_trials(opened(tmp_path), 8, bench(Runs()))
    study = optuna.load_study(study_name="batch 8", storage=url(tmp_path))
    assert study.best_value == min(trial.updates for trial in opened(tmp_path).ended() if trial.outcome == "reached")
    assert set(study.best_params) == {"optimizer.lr", "optimizer.momentum", "x.y"}


def test_how_many_runs_a_batch_takes():
    assert expected_runs(16, halves=True) == 16 + 6 + 4
    assert expected_runs(40, halves=True) == 2 * 26 + 8 + 4 + 4
    assert expected_runs(40, halves=False) == 40
