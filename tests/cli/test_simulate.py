"""`bigbatch simulate` as a person meets it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.command import bigbatch
from tests.limits import LIMIT_S

from bigbatch.cli.commands.simulate import simulate
from bigbatch.cli.options import units
from bigbatch.core.checks import UserError

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ["simulate", "--workers", "256", "--bandwidth", "50Gbit", "--latency", "50us", "--model-bytes", "100MB", "--step", "120ms"]


def test_table_sentence_doubts_and_files(tmp_path):
    done = bigbatch(*COMMAND, "--price", 2.5, cwd=tmp_path)
    for text in (
        "256 workers",
        "halving_doubling",
        "efficiency",
        "samples/s",
        "cost / 1M samples",
        "wins among exact updates",
        "caveat: ",
    ):
        assert text in done.stdout, text
    assert done.stdout.endswith("plot: runs/simulate/simulate.svg, numbers: runs/simulate/simulate.json\n")
    assert done.stderr == ""
    stored = json.loads((tmp_path / "runs/simulate/simulate.json").read_text())
    assert stored["workers"] == [2, 4, 8, 16, 32, 64, 128, 256]
    assert stored["case"]["step_s"] == 0.12
    assert stored["price"] == 2.5
    assert (tmp_path / "runs/simulate/simulate.svg").read_text().startswith("<svg")


def test_json_on_standard_output_and_nothing_else(tmp_path):
    done = bigbatch(*COMMAND, "--json", "-", cwd=tmp_path)
    assert json.loads(done.stdout) == json.loads((tmp_path / "runs" / "simulate" / "simulate.json").read_text())


def test_several_numbers_a_doctor_and_a_target(tmp_path):
    link = {"alpha_s": 1e-4, "beta_s_per_byte": 1e-9, "residual": 0.1, "bandwidth_bytes_per_s": 1e9}
    (tmp_path / "doctor.json").write_text(json.dumps({"link": link}))
    short = ["simulate", "--workers", "2,8", "--doctor", "doctor.json", "--model-bytes", "fashion_mnist/mlp", "--step", "12ms"]
    done = bigbatch(*short, "--critical", CRITICAL, "--local-batch", 128, "--out", "out", cwd=tmp_path)
    for text in ("Over workers", "fastest of all", "To the target", "best batch", "to the target, fastest: "):
        assert text in done.stdout, text
    stored = json.loads((tmp_path / "out/simulate.json").read_text())
    assert stored["case"]["link"] == {"alpha_s": 1e-4, "beta_s_per_byte": 1e-9, "gamma_s_per_byte": 0.0}
    assert stored["case"]["model_bytes"] == 4 * (784 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10)
    assert stored["workers"] == [2, 8]
    assert stored["target"]["trade_off"]["min_steps"] == pytest.approx(184.04, abs=0.01)
    bigbatch(*short, "--latency", "1ms", "--out", "out", cwd=tmp_path)  # replaces what was measured
    assert json.loads((tmp_path / "out/simulate.json").read_text())["case"]["link"]["alpha_s"] == 1e-3


INTERNET = [
    *("simulate", "--workers", "16,256,4096", "--model-bytes", "2GB", "--step", "1s", "--bandwidth", "1Gbit", "--latency", "100ms"),
    *("--spread", "0.1", "--lost-every", "24h"),
]


def test_links_between_sites_in_80_columns(tmp_path):
    """No table is wider, no name or number is cut in two, and who wins and what is not known is said."""
    terminal = {"FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": "80", "TERM": "xterm"}
    done = bigbatch(*INTERNET, cwd=tmp_path, **terminal)
    lines = re.sub("\x1b\\[[0-9;]*m", "", done.stdout).splitlines()
    assert max(map(len, lines)) <= 80
    stored = json.loads((tmp_path / "runs/simulate/simulate.json").read_text())
    names = [row["strategy"] for row in stored["rows"] if row["workers"] == 4096]
    first = [line.strip("│ ").partition(" ")[0] for line in lines if ":" not in line and "workers" not in line]
    assert [word for word in first if word in ("16", "256", "4,096")] == ["16", "256", "4,096"]
    assert [word for word in first if word in names] == names  # a row is a line
    text = " ".join(lines)
    for words in (
        "it wins if it needs less than",
        "a worker lost every 21.1 s",
        "1.08 to 1.92 times",
        "a wider terminal also shows: samples/s",
    ):
        assert words in " ".join(text.split()), words


def test_every_option_reaches_the_case(tmp_path):
    some = ["--outer-period", "50", "--fragments", "5", "--overlap-updates", "2", "--all-reduce", "tree", "--recovery", "2min"]
    inside = ["--host-bandwidth", "400Gbit", "--host-latency", "10ms", "--workers-per-host", "8", "--lost-every", "12h"]
    bigbatch(*COMMAND, *some, *inside, cwd=tmp_path)
    case = json.loads((tmp_path / "runs/simulate/simulate.json").read_text())["case"]
    assert [case[name] for name in ("outer_period", "fragments", "overlap_updates", "all_reduce")] == [50, 5, 2, "tree"]
    assert [case[name] for name in ("recovery_s", "lost_every_s", "workers_per_host")] == [120.0, 43200.0, 8]
    assert case["host_link"] == {"alpha_s": 0.01, "beta_s_per_byte": 2e-11, "gamma_s_per_byte": 0.0}


def test_needs_no_torch(tmp_path):
    code = f"import sys; sys.argv = ['bigbatch', *{COMMAND}]; from bigbatch.cli.app import app; app(standalone_mode=False)"
    check = f"{code}\nassert not {{'torch', 'sklearn', 'scipy'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr


GIVEN = {"workers": "4", "bandwidth": "50Gbit", "latency": "50us", "model_bytes": "100MB", "step": "120ms"}
CRITICAL = ROOT / "studies/critical_batch/fashion_mnist-mlp/critical.json"


def test_a_mistake_is_one_readable_line(tmp_path):
    done = bigbatch(*COMMAND, "--bandwidth", 50, cwd=tmp_path, expect=2)
    units = "bit, kbit, Mbit, Gbit, Tbit, B, kB, KB, MB, GB, TB, KiB, MiB, GiB"
    such = "such as 50Gbit, 100Mbit or 6GB"
    assert done.stderr == f"error: --bandwidth 50: has no unit; write one of {units} behind the number, {such}\n"
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": "2;4"}, "--workers 2;4: must be whole numbers with commas between"),
        ({"workers": "0"}, "workers = 0: must be 1 or more"),
        ({"workers": "0,4"}, "workers = 0: must be 1 or more"),
        ({"bandwidth": "50Gb"}, "--bandwidth 50Gb: unknown unit 'Gb'; write one of bit, "),
        ({"bandwidth": None}, "the link is not known: give --bandwidth and --latency, such as 50Gbit and 50us, or --doctor FILE"),
        ({"latency": "soon"}, "--latency soon: must be a number and a unit, such as 50us, 20ms or 1.5s"),
        ({"step": "120"}, "--step 120: has no unit; write one of ns, us, µs, ms, s, min, h behind the number, such as 50us"),
        ({"model_bytes": "100Mb"}, "--model-bytes 100Mb: unknown unit 'Mb'; write one of B, kB, KB, MB"),
        ({"model_bytes": "digits/mpl"}, "unknown task 'digits/mpl': did you mean 'digits/mlp'"),
        ({"host_latency": "10us"}, "--host-bandwidth or --host-latency alone: the link inside a host needs both, such as 400Gbit and 10us"),
        ({"host_latency": "10", "host_bandwidth": "1GB"}, "--host-latency 10: has no unit"),
        ({"lost_every": "daily"}, "--lost-every daily: must be a number and a unit"),
        ({"recovery": "60"}, "--recovery 60: has no unit"),
        ({"all_reduce": "rings"}, "unknown all-reduce 'rings': did you mean 'ring'"),
        ({"outer_period": 0}, "outer_period = 0: must be 1 or more"),
        ({"spread": -1.0}, "spread = -1.0: must be zero or above"),
        ({"doctor": Path("absent.json")}, "--doctor absent.json: can't be read: "),
        ({"critical": Path("absent.json")}, "--critical absent.json: can't be read: "),
        ({"critical": CRITICAL, "fixed": "1s"}, "fixed_s = 1.0: must lie from 0"),
    ],
)
def test_refuses(tmp_path, capsys, given, message):
    with pytest.raises(UserError, match=re.escape(message)):
        simulate(**{**GIVEN, **given}, out=tmp_path / "out")
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "option", "message"),
    [
        ('{"link": null}', "doctor", "no exchange was measured; run `bigbatch doctor --workers N --json FILE` with 2 or more"),
        (
            "[]",
            "doctor",
            "is damaged: holds a list where an object should be; give a file that `bigbatch doctor --workers N --json FILE` wrote",
        ),
        ('{"fit": null}', "critical", "its study has no fit with both ends; let batches above and below"),
    ],
)
def test_a_file_that_does_not_serve(tmp_path, content, option, message):
    path = tmp_path / "it.json"
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(f"--{option} {path}: {message}")):
        simulate(**GIVEN, **{option: path}, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (units.num_bytes, "100MB", 1e8),
        (units.num_bytes, "1.5 GiB", 1.5 * 2**30),
        (units.num_bytes, "4e3kB", 4e6),
        (units.seconds, "50us", 50e-6),
        (units.seconds, ".5ms", 5e-4),
        (units.seconds, "2min", 120.0),
        (units.bytes_per_second, "50Gbit", 6.25e9),
        (units.bytes_per_second, "100Mbit/s", 12.5e6),
        (units.bytes_per_second, "1GB/s", 1e9),
    ],
)
def test_quantities(read, text, value):
    assert read("--option", text) == pytest.approx(value)
