"""Three scripts that know nothing of bigbatch, through `scale` and `critical` by command alone: do they end in a verdict and a fit?

    python studies/scripts/run.py [--only resnet] [--parallel 2]

The scripts and their settings (at most 12 lines of TOML each) are in examples/scripts. What each command said and stored is written to
studies/scripts/results.json after each; finished runs below --out are taken as they are, so that it can be stopped and started again.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from bigbatch.runner.settings_file import load_settings
from bigbatch.train.state.record import environment

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SCRIPTS = ROOT / "examples/scripts"
DESIGN = ["--seeds", "3", "--max-seeds", "5", "--bad-share", "0.5"]
CASES = {
    "resnet": ("resnet_argparse.toml", 256, ["--batches", "16,64,256", "--target", "96", "--max-epochs", "12"]),
    "tinygpt": ("tinygpt/tinygpt.toml", 64, ["--batches", "8,32,128", "--target", "2.65", "--max-epochs", "1.2"]),
    "run_glue_like": ("run_glue_like.toml", 64, ["--batches", "16,64,192", "--target", "0.8", "--max-epochs", "5"]),
}
"""Name to settings, the batch to scale to, and the study of batches."""


def bigbatch(*arguments, stored):
    """The end of what a command said, and what it stored."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "bigbatch", *map(str, arguments)], capture_output=True, text=True, check=False)
    told = {
        "command": " ".join(map(str, arguments)).replace(f"{ROOT}/", "").partition(" --out ")[0],
        "exit_code": done.returncode,
        "seconds_of_the_last_call": round(time.monotonic() - began),
    }
    if done.returncode:
        return told | {"error": done.stderr[-2000:]}
    said = [line for line in done.stdout.splitlines()[-8:] if not line.startswith(("report: ", "plot: "))]
    return told | {"said": said, "stored": json.loads(stored().read_text())}


def summary(kind, told):
    """The few values that a reader wants."""
    stored = told.pop("stored", None)
    if stored is None:
        return told
    if kind == "critical":
        return told | {
            "sentence": stored["sentence"],
            "doubts": stored["doubts"],
            "points": [
                {"global_batch": p["global_batch"], "lr": p["lr"], "updates": [r["updates"] for r in p["runs"]]} for p in stored["points"]
            ],
        }
    arms = {arm["name"]: [r["test_score"] for r in arm["results"]] for arm in stored["arms"]}
    return told | {
        "rule": stored["rule"],
        "reason": stored["reason"],
        "scores": arms,
        "verdicts": [a["sentence"] for a in stored["arms"][1:]],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/scripts"))
    asked = parser.parse_args()
    path = HERE / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in asked.only:
        settings, to, batches = CASES[name]
        own = ["--parallel", asked.parallel, "--quiet", "--out"]
        lines = [line for line in (SCRIPTS / settings).read_text().splitlines() if line.strip() and not line.startswith("#")]
        runner, _ = load_settings(SCRIPTS / settings)
        results[name] = {"lines_of_toml": len(lines), "metric": runner.metric.to_plain(), "environment": environment()}
        for kind, options in (("scale", ["--to", to, *DESIGN]), ("critical", batches)):
            out = asked.out / name / kind

            def stored(kind=kind, out=out):
                return out / "critical.json" if kind == "critical" else next(out.glob("*.comparison.json"))

            told = bigbatch(kind, SCRIPTS / settings, *options, *own, out, stored=stored)
            if kind == "scale":
                told["report"] = (out / "report.html").exists()
            results[name][kind] = summary(kind, told)
            path.write_text(json.dumps(results, indent=1) + "\n")
            print(
                name,
                kind,
                results[name][kind].get("verdicts") or results[name][kind].get("sentence") or results[name][kind].get("error"),
                flush=True,
            )


if __name__ == "__main__":
    main()
