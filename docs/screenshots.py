"""Screenshots of every kind of report, for a light page, a dark one, and one of 400 pixels: docs/screenshots/*.png.

    python docs/screenshots.py [KIND ...]      needs Debian's package chromium; some minutes on two cores

Runs and studies are small ones of digits/mlp, made anew in a temporary folder.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from bigbatch import Recipe, fit, scale
from bigbatch.report import write_report
from bigbatch.simulate.case import Case
from bigbatch.simulate.link import link_of
from bigbatch.study.branches import branches
from bigbatch.study.critical import critical
from bigbatch.study.curvature import curvature
from bigbatch.study.noise import measure_noise
from bigbatch.study.simulate import simulate
from bigbatch.study.steps import steps

PLACE = Path(__file__).parent / "screenshots"
LOOKS = {"light": (1280, 1500, 1), "dark": (1280, 1500, 0), "narrow": (400, 1500, 1)}
"""Width, height, and Blink's number of the preferred colours: 0 dark, 1 light."""
MOST_COLOURS, MOST_BYTES = 128, 150_000
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-background-networking"]
RECIPE = Recipe.named("digits/mlp").replace({"budget.epochs": 6, "batch.micro_batch": 32})


def run(out: Path) -> None:
    """One run whose batch a rule raises, with what `bigbatch curvature` measured."""
    rule = {"batch.rule": {"kind": "norm_test", "theta": 0.6}, "batch.micro_batch": 8}
    fit("digits/mlp", RECIPE.replace(rule), out=out, quiet=True, tensorboard=False)
    curvature(out, samples=64, quiet=True)


def comparison(out: Path) -> None:
    """A study of five seeds."""
    scale("digits/mlp", to=256, rule="sqrt", seeds=5, max_seeds=5, bad_share=0.5, margin=3.0, recipe=RECIPE, out=out, quiet=True)


def noise(out: Path) -> None:
    """A measurement of the noise scale."""
    measure_noise("digits/mlp", RECIPE, out=out, quiet=True)


def critical_batch(out: Path) -> None:
    """A study of the critical batch, of which the largest batch does not get to the target."""
    critical("digits/mlp", RECIPE, batches=[16, 64, 256, 1024], target=0.96, max_epochs=10, out=out, quiet=True)


def steps_to_target(out: Path) -> None:
    """A study of updates to a target with every setting searched."""
    steps("digits/mlp", RECIPE, batches=[8, 32, 128, 512], target=0.95, trials=8, max_epochs=20, out=out, quiet=True)


def by_branches(out: Path) -> None:
    """A study by branches of a run."""
    fit("digits/mlp", RECIPE, out=out / "base", keep_checkpoints=True, measure_test=False, quiet=True, tensorboard=False)
    branches(out / "base", at=[82, 163], samples=1024, windows=3, out=out)


def simulation(out: Path) -> None:
    """A simulation."""
    case = Case(256, link_of(bandwidth_bytes_per_s=6.25e9, latency_s=50e-6), 1e8, 0.12)
    out.mkdir()
    (out / "simulate.json").write_text(json.dumps(simulate(dataclasses.replace(case, spread=0.05)).to_dict()))


def index(out: Path) -> None:
    """A folder with some of each."""
    for name in ("comparison", "noise", "critical_batch", "run"):
        if (out.parent / name).exists():
            shutil.copytree(out.parent / name, out / name)
    (out / "stopped").mkdir(parents=True)
    fit("digits/mlp", RECIPE, out=out / "stopped", measure_test=False, quiet=True, tensorboard=False)
    (out / "stopped" / "result.json").unlink()


KINDS = (run, comparison, noise, critical_batch, steps_to_target, by_branches, simulation, index)
MADE: dict[str, Callable[[Path], None]] = {f.__name__: f for f in KINDS}


def take(page: Path, look: str, to: Path, profile: Path) -> None:
    """One screenshot, of few colours."""
    width, height, colours = LOOKS[look]
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("chromium: is not installed; apt-get install chromium")
    flags = [*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}", f"--blink-settings=preferredColorScheme={colours}"]
    subprocess.run([chromium, *flags, f"--screenshot={to}", f"file://{page}"], check=True, capture_output=True)
    with Image.open(to) as image:
        image.convert("RGB").quantize(MOST_COLOURS).save(to, optimize=True)
    if to.stat().st_size > MOST_BYTES:
        sys.exit(f"{to}: has {to.stat().st_size:,} bytes, more than {MOST_BYTES:,}; lower the height")


def main() -> None:
    """Make what the arguments name, or all."""
    PLACE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or MADE:
            MADE[name](Path(folder) / name)
            page = write_report(Path(folder) / name)
            for look in LOOKS:
                take(page, look, PLACE / f"{name}-{look}.png", Path(folder) / "profile")


if __name__ == "__main__":
    main()
