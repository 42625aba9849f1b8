import json
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.runner.scripts import CURVE, METRIC, RECIPE, RUN, section, write_script

from bigbatch import Interrupted, UserError, plan
from bigbatch.core.checks import CheckpointError, RunFailed
from bigbatch.runner import CommandRunner, Request
from bigbatch.runner.process import MOST_BYTES
from bigbatch.train.state.record import read_record

QUICK = RECIPE.replace({"budget.epochs": 0.5})


def run(tmp_path, *, script=None, recipe=QUICK, target=None, measure_test=True, out="run", **others):
    write_script(tmp_path, **({"text": script} if script is not None else {}))
    runner = CommandRunner(section(**others), name="theirs", base=tmp_path)
    return runner.run(recipe, Request(out=tmp_path / out, target=target, measure_test=measure_test))


def test_scores_curve_record_and_output(tmp_path):
    result = run(tmp_path)
    assert (result.updates, result.samples, result.diverged, result.reached) == (64, 2048, False, False)
    assert 0 < result.test_score < 95
    assert result.best_validation_score >= result.validation_score == result.test_score
    record = read_record(tmp_path / "run" / "record.jsonl")
    scores = [(line["update"], line["samples"]) for line in record if line["kind"] == "evaluation" and line["split"] == "validation"]
    assert scores == [(update, 32 * update) for update in range(1, 65)]
    assert [line["loss"] for line in record if line["kind"] == "reported"][1] == 0.5
    assert (tmp_path / "run" / "stdout.txt").read_text().endswith(f"test_acc {result.test_score:.3f}\n")


def test_a_finished_run_is_read_and_another_command_s_is_refused(tmp_path):
    first = run(tmp_path)
    (tmp_path / "train.py").unlink()
    again = CommandRunner(section(), name="theirs", base=tmp_path).run(QUICK, Request(out=tmp_path / "run"))
    assert again == first
    with pytest.raises(CheckpointError, match="holds a run of another command .* choose another --out"):
        run(tmp_path, run=f"{RUN} --note x")
    with pytest.raises(CheckpointError, match="another recipe"):
        run(tmp_path, recipe=QUICK.replace({"seed": 3}))


def test_it_ends_at_the_target(tmp_path):
    slow = (
        "import time, sys\nfor i in range(1, 10**6):\n    print(f'step {i}: train loss 1, val acc {i}', flush=True)\n    time.sleep(0.05)\n"
    )
    result = run(tmp_path, script=slow, target=5.0, measure_test=False)
    assert (result.reached, result.best_validation_score, result.updates) == (True, 5.0, 5)


def test_a_target_needs_a_curve(tmp_path):
    with pytest.raises(UserError, match="a target needs validation scores on the way; state `curve`"):
        run(tmp_path, target=50.0, curve=None)


@pytest.mark.parametrize(
    ("script", "others", "why"),
    [
        ("print('done')", {}, r"ended well and told no score: nothing was found in standard output \('test_acc .*output is in .*run"),
        ("import sys; print('hm'); sys.exit('no data')", {}, r"ended with exit code 1: no data; its output is in"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", {}, r"was ended by signal 9: it printed nothing"),
        ("import time; time.sleep(600)", {"time_limit_s": 0.5}, r"ran longer than time_limit_s = 0.5, and was stopped"),
        (
            "print('test_acc x.y')",
            {"score": "test_acc (.*)"},
            r"score 'x.y': found in standard output .* is no number; correct the pattern",
        ),
        ("print('test_acc 88')", {"metric": "accuracy"}, r"score = 88: is above 1, and accuracy is a share of samples; .* unit = \"%\""),
    ],
    ids=["no score", "exit code", "signal", "hangs", "no number", "per cent of shares"],
)
def test_runs_that_fail(tmp_path, script, others, why):
    with pytest.raises(RunFailed, match=why):
        run(tmp_path, script=script, **others)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(
    ("script", "others", "why"),
    [
        ("print('test_acc nan')", {}, "no score, and its output has a number that is not finite: test_acc nan"),
        ("print('test_acc nan')", {"score": "test_acc (.*)"}, "test score = nan"),
        (
            "print('step 7: train loss 1, val acc inf')\nprint('test_acc 1')",
            {"curve": CURVE.replace("[0-9.]+)$", "").replace("(?P<score>[0-9.]+)", "(?P<score>.+)")},
            "validation score = inf after update 7",
        ),
        ("import time\nprint('loss is NaN, giving up', flush=True)\ntime.sleep(600)", {"diverged": "giving up"}, "its output says so"),
    ],
    ids=["nan", "nan found", "curve", "pattern"],
)
def test_runs_that_diverge(tmp_path, script, others, why):
    result = run(tmp_path, script=script, **others)
    assert (result.diverged, math.isnan(result.test_score)) == (True, True)
    assert why in (tmp_path / "run" / "diverged.txt").read_text()


def test_a_failed_run_is_made_again_once(tmp_path):
    script = "import os, sys\nopen('tries', 'a').write('x')\nif len(open('tries').read()) < 2: sys.exit('network')\nprint('test_acc 90')"
    result = run(tmp_path, script=script, retries=1)
    assert (result.test_score, (tmp_path / "tries").read_text()) == (90.0, "xx")
    assert "attempt 1: command: ended with exit code 1: network" in (tmp_path / "run" / "failed.txt").read_text()


def test_a_gigabyte_of_output_is_read_to_its_end_and_kept_in_part(tmp_path):
    script = "import os\nblock = b'x' * 2**20\nfor _ in range(1024): os.write(1, block)\nos.write(1, b'\\ntest_acc 77.5\\n')"
    assert run(tmp_path, script=script).test_score == 77.5
    kept = tmp_path / "run" / "stdout.txt"
    assert kept.stat().st_size < MOST_BYTES + 4 * 2**20
    text = kept.read_text()
    assert "bytes left out]" in text
    assert text.endswith("test_acc 77.5\n")


def test_a_script_that_changes_its_folder_and_paths_with_spaces_and_quotes(tmp_path):
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    script = (
        "import os, sys\nout = sys.argv[1]\nos.chdir('/')\nopen(os.path.join(out, 'result.json'), 'w').write('{\"test\": {\"acc\": 12.5}}')"
    )
    score = {"file": "{out}/result.json", "key": "test.acc"}
    assert run(folder, script=script, run="python train.py {out}", score=score, curve=None).test_score == 12.5
    quoted = {"run": "python train.py {out} && echo $(pwd)", "shell": True}
    assert run(folder, script=script, out="again", score=score, curve=None, **quoted).test_score == 12.5
    assert (folder / "again" / "stdout.txt").read_text().strip() == str(folder)


def test_a_curve_and_a_score_in_files_of_json_lines(tmp_path):
    script = (
        "import json, sys\nwith open(sys.argv[1] + '/log.jsonl', 'w') as f:\n"
        "    for i in range(1, 6): f.write(json.dumps({'iter': 10 * i, 'val/loss': 5 / i}) + '\\n')\n    f.write('{half')\n"
    )
    log = {"file": "{out}/log.jsonl", "key": "val/loss"}
    metric = METRIC | {"name": "loss", "better": "lower", "unit": "nats"}
    result = run(tmp_path, script=script, run="python train.py {out}", score=log, curve=log | {"updates": "iter"}, metric=metric)
    assert (result.test_score, result.best_validation_score) == (1.0, 1.0)
    record = read_record(tmp_path / "run" / "record.jsonl")
    assert [line["update"] for line in record if line["kind"] == "evaluation"] == [10, 20, 30, 40, 50, 64]


def test_a_score_that_an_attempt_before_has_left_is_not_taken(tmp_path):
    place = tmp_path / "run" / "output"
    place.mkdir(parents=True)
    (place / "result.json").write_text('{"acc": 99.0}')
    score = {"file": "{out}/result.json", "key": "acc"}
    with pytest.raises(RunFailed, match="ended well and told no score"):
        run(tmp_path, script="print()", run="python train.py {out}", score=score, curve=None)
    script = "import sys\nopen(sys.argv[1] + '/result.json', 'w').write('{\"acc\": 88.0}')"
    assert run(tmp_path, script=script, run="python train.py {out}", score=score, curve=None).test_score == 88.0


def test_scores_in_tensorboard_s_events(tmp_path):
    from bigbatch.train.state.tensorboard import Events

    (tmp_path / "logs").mkdir()
    events = Events(tmp_path / "logs", 0)
    for step in (1, 2, 3):
        events.add_scalar("eval/acc", 30.0 * step, step)
    events.close()
    source = {"tensorboard": "logs", "tag": "eval/acc"}
    result = run(tmp_path, script="print()", score=source, curve=source)
    assert (result.test_score, result.validation_score) == (90.0, 90.0)
    with pytest.raises(RunFailed, match=r"nothing was found in TensorBoard's events below .* \(tag 'nothing'\)"):
        run(tmp_path, script="print()", score=source | {"tag": "nothing"}, curve=None, out="other")


def test_its_processes_end_with_it_and_ctrl_c_says_how_to_go_on(tmp_path):
    script = (
        "import subprocess, sys, time\nchild = subprocess.Popen(['sleep', '600'])\nopen('pid', 'w').write(str(child.pid))\ntime.sleep(600)"
    )
    asked = threading.Timer(0.1, lambda: wait_for(tmp_path / "pid") or os.kill(os.getpid(), signal.SIGINT))
    asked.start()
    with pytest.raises(Interrupted, match="stopped in theirs; the same command makes this run again"):
        run(tmp_path, script=script)
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):
        status = Path(f"/proc/{child}/stat")
        if not status.exists() or status.read_text().split(")")[1][:3] == " Z ":
            break
        time.sleep(0.05)
    else:
        raise AssertionError("its child still runs")


def wait_for(path):
    for _ in range(600):
        if path.exists() and path.read_text():
            return
        time.sleep(0.05)


def test_environment_and_working_folder(tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    script = "import os\nassert os.getcwd().endswith('below')\nprint('test_acc', os.environ['LEVEL'])"
    write_script(tmp_path / "below", script)
    assert run(tmp_path, folder="below", environment={"LEVEL": "42"}).test_score == 42.0


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ({"metric": {"name": "loss", "unit": "nats", "margin": 0.1}}, r'metric loss: better = None: must be "higher" or "lower"; state it'),
        ({"metric": {"name": "loss", "better": "lower"}}, "metric loss: states no margin"),
        ({"score": "test_acc"}, "has no group; put the number in one"),
        ({"score": "test_acc ("}, "is no regular expression"),
        ({"diverged": "nan)"}, "diverged 'nan\\)': is no regular expression"),
        ({"curve": "acc ([0-9.]+)"}, "says no positions; name a group updates, samples, epoch"),
        ({"curve": {"file": "x.json", "key": "a"}}, "says no positions; state the key"),
        ({"can": ["lrate"]}, "can: unknown word 'lrate'"),
        ({"folder": "nowhere"}, "folder .*nowhere: is not there"),
    ],
)
def test_settings_that_are_refused(tmp_path, others, why):
    with pytest.raises(UserError, match=why):
        CommandRunner(section(**others), base=tmp_path).check(RECIPE)


def test_a_program_that_is_not_there(tmp_path):
    with pytest.raises(RunFailed, match="command 'no-such-program': can't be started in .*: No such file"):
        run(tmp_path, run="no-such-program {optimizer.lr}")


def test_a_run_needs_a_folder(tmp_path):
    with pytest.raises(UserError, match="a command needs a folder"):
        CommandRunner(section(), base=tmp_path).run(QUICK, Request())


def test_identity_is_plain_json(tmp_path):
    runner = CommandRunner(section(score={"file": "a.json", "key": "b"}), base=tmp_path)
    assert json.loads(json.dumps(runner.identity)) == runner.identity
    assert sys.executable


def test_a_script_that_tells_no_score_is_not_run_again(tmp_path):
    script = "open('calls', 'a').write('x')\nprint('final: 2.6352')"
    with pytest.raises(
        RunFailed, match="told no score: nothing was found in standard output .*; its last line was 'final: 2.6352'"
    ) as failed:
        run(tmp_path, script=script, retries=2, curve=None)
    assert "tried" not in str(failed.value)
    assert (tmp_path / "calls").read_text() == "x"


@pytest.mark.parametrize("last", ["f1 of class 7: nan (no samples)", "done; patience inf"])
def test_where_no_test_score_is_asked_for_a_validation_score_is_one(tmp_path, last):
    script = f"print('step 16: train loss 1, val acc 50')\nprint('{last}')"
    result = run(tmp_path, script=script, measure_test=False, target=90.0)
    assert (result.diverged, result.validation_score) == (False, 50.0)


def test_a_command_without_a_seed_is_warned_of(tmp_path):
    write_script(tmp_path)
    with pytest.warns(UserWarning, match=r"has no \{seed\}: unless it draws one itself, all runs of an arm are the same"):
        CommandRunner(section(RUN.replace("--seed {seed}", "")), base=tmp_path).check(QUICK)


def test_events_are_read_on_from_where_they_were(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    from bigbatch.runner.score_sources import TensorBoard

    events, source = SummaryWriter(str(tmp_path)), TensorBoard(tmp_path, "acc", unit="updates")
    for step in (1, 2, 3):
        events.add_scalar("acc", 10.0 * step, step)
        events.flush()
        assert [(reading.value, reading.position) for reading in source.news()] == [(10.0 * step, {"updates": step})]
    events.close()


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ({"time_limit": 5}, r"\[command\] unknown field 'time_limit': did you mean 'time_limit_s'"),
        ({"score": {"file": "x", "keys": "y"}}, r"\[command\] score: unknown field 'keys': did you mean 'key'"),
        ({"score": {"file": "x"}}, r"\[command\] score: no key"),
        ({"curve": {"tensorboard": "x"}}, r"\[command\] curve: no tag"),
    ],
)
def test_a_mistyped_setting_is_named(others, why):
    with pytest.raises(UserError, match=why):
        CommandRunner(section(**others))


def test_a_curve_in_json_without_its_position_is_named(tmp_path):
    script = "import json\nopen('r.json', 'w').write(json.dumps({'acc': 50}))\nprint('test_acc 50')"
    with pytest.raises(RunFailed, match="curve in .*r.json: beside 'acc' there is no 'stp', which says where the run stood"):
        run(tmp_path, script=script, curve={"file": "r.json", "key": "acc", "updates": "stp"})


def test_what_differs_of_two_commands_is_told(tmp_path):
    run(tmp_path)
    with pytest.raises(CheckpointError, match=r"of another command \(curve: .* there, None here\)"):
        run(tmp_path, curve=None)


def test_a_warm_up_that_begins_above_zero_is_warned_of_where_the_script_can_t_know(tmp_path):
    write_script(tmp_path)
    reference = QUICK.replace({"schedule.warmup": {"kind": "gradual", "updates": 8}})
    command = RUN.replace("--seed", "--note {warmup.updates} --seed")
    runner = CommandRunner(section(command), base=tmp_path)
    planned = plan(reference, global_batch=128, rule="linear", can_change=runner.can_change).recipe
    with pytest.warns(UserWarning, match="has no place for schedule.warmup.start_factor = 0.2.*: unless the script's warm-up begins there"):
        runner.check(planned)
    CommandRunner(section(f"{command} --note {{schedule.warmup.start_factor}}"), base=tmp_path).check(planned)
    runner.check(plan(reference, global_batch=128, rule="legw", can_change=runner.can_change).recipe)
