"""How long a study will take: of the whole, and not of the runs of one call."""

from bigbatch.runner import jobs
from bigbatch.runner.jobs import Job, OneAfterAnother, Whole, run_jobs
from bigbatch.runner.protocol import Request
from bigbatch.train.state.result import Result


class Runner:
    """Each run takes ten seconds of a clock that only it moves."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(jobs.time, "monotonic", lambda: self.now)

    def run(self, recipe, request):
        self.now += 10.0
        return Result("t", updates=1, samples=1)


def test_a_study_of_several_calls(monkeypatch):
    runner, whole, said = Runner(monkeypatch), Whole(expected=5), []
    job = Job(None, Request(title="a run"))
    run_jobs(OneAfterAnother(), runner, [job, job], said.append, whole=whole)
    assert said == ["a run", "1 of 5 runs done, about 40 s left", "a run", "2 of 5 runs done, about 30 s left"]
    whole.expected = 4  # an estimate: what is known later is better
    said.clear()
    run_jobs(OneAfterAnother(), runner, [job, job], said.append, whole=whole)
    assert said == ["a run", "3 of 4 runs done, about 10 s left", "a run"]


def test_runs_that_are_found_finished_took_no_time(monkeypatch, tmp_path):
    (tmp_path / "result.json").write_text("{}")
    runner, said = Runner(monkeypatch), []
    runner.run = lambda recipe, request: Result("t", updates=1, samples=1)
    whole = Whole(expected=3)
    run_jobs(OneAfterAnother(), runner, [Job(None, Request(title="a run", out=tmp_path))], said.append, whole=whole)
    assert (whole.done, whole.made, said) == (1, 0, ["a run, found finished"])
    run_jobs(OneAfterAnother(), Runner(monkeypatch), [Job(None, Request(title="a run"))], said.append, whole=whole)
    assert said[-1] == "2 of 3 runs done, about 10 s left"
