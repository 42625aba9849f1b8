"""Make the reports of the gallery anew, in some minutes: python docs/make_gallery.py [NAME ...]."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parent
REPORTS = {
    "own_script": (["scale mine.toml --to 64 --seeds 5 --max-seeds 8 --bad-share 0.5 --parallel 2"], "runs/scale/digits"),
    "comparison": (["scale digits/mlp --to 512 --seeds 3 --max-seeds 5 --bad-share 0.5 --out runs/comparison"], "runs/comparison"),
    "one_run": (["train digits/mlp --set optimizer.lr=0.05 --out runs/one"], "runs/one"),
    "curvature": (
        [
            "train digits/mlp --keep-checkpoints --set curvature.every_updates=100 --out runs/small",
            "train digits/mlp --global-batch 512 --rule none --keep-checkpoints --out runs/large",
            "curvature runs/small --against runs/large",
        ],
        "runs/small",
    ),
    "noise": (["noise digits/mlp --layers --out runs/noise"], "runs/noise"),
    "critical": (["critical digits/mlp --batches 8,32,128,512 --target 0.95 --max-epochs 40 --out runs/critical"], "runs/critical"),
    "steps": (["steps digits/mlp --batches 8..1024 --target 0.96 --trials 16 --out runs/steps"], "runs/steps"),
    "simulate": (
        ["simulate --workers 2,8,64 --bandwidth 10Gbit --latency 50us --model-bytes 100MB --step 120ms --out runs/simulate"],
        "runs/simulate",
    ),
}
"""Commands, and the folder whose report.html it is."""


def titled_files(page: Path) -> dict[str, str]:
    """Files that a page of the documentation shows."""
    return dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', page.read_text(), re.MULTILINE | re.DOTALL))


def main(names: list[str]) -> None:
    (DOCS / "gallery").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in titled_files(DOCS / "tutorial.md").items():
            Path(folder, name).write_text(text)
        for name in names or REPORTS:
            commands, runs = REPORTS[name]
            environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
            for command in [*commands, *([] if name == "curvature" else [f"report {runs}"])]:
                subprocess.run([sys.executable, "-m", "bigbatch", *command.split()], cwd=folder, env=environment, check=True)
            found = sorted(Path(folder).glob(f"{runs}/**/report.html"), key=lambda report: len(report.parts))
            shutil.copy(found[0], DOCS / "gallery" / f"{name}.html")


if __name__ == "__main__":
    main(sys.argv[1:])
