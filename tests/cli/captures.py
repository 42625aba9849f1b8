"""What a person sees on terminals of 80 and 120 columns, as text in captures/.

python -m tests.cli.captures          # renew them, after a change that is meant
"""

import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CAPTURES = Path(__file__).with_name("captures")
WIDTHS = (80, 120)
LINK = ["--model-bytes", "100MB", "--step", "100ms", "--bandwidth", "1Gbit", "--latency", "50us"]
COMMANDS = {
    "plan": ["plan", "fashion_mnist/resnet8", "--global-batch", "1024", "--rule", "linear"],
    "simulate": ["simulate", "--workers", "8,64", *LINK],
    "train": ["train", "digits/mlp", "--set", "batch.micro_batch=32"],
    "scale": ["scale", "mine.toml", "--to", "128", "--seeds", "3", "--max-seeds", "3", "--bad-share", "0.7"],
    "critical": ["critical", "mine.toml", "--batches", "32,128,512", "--target", "70"],
}
EXACT = ("plan", "simulate")
"""Of which every character is the same on every machine."""
SETTINGS = """
task = "mine"
num_train_samples = 4096
budget.epochs = 2
batch.global_batch = 32
optimizer = { name = "sgd", lr = 0.1 }
[function]
run = "mine:train"
metric = { name = "accuracy", unit = "%", better = "higher", margin = 0.5 }
"""
FUNCTION = """
import math, random

def train(recipe, run):
    batch, lr, rng = recipe.batch.global_batch, recipe.optimizer.lr, random.Random(recipe.seed)
    off = math.log10(lr / (0.1 * math.sqrt(batch / 32)))  # the best rate grows by the root
    speed = batch / (batch + 128) * math.exp(-off * off)
    for update in range(1, recipe.num_updates + 1):
        accuracy = 95 * (1 - math.exp(-0.06 * speed * update)) + 0.05 * rng.random()
        if update % max(1, recipe.num_updates // 40) == 0:
            run.log(updates=update, loss=1 / update, score=accuracy)
    run.score(95 + 0.05 * rng.random())
"""
SPINNER, BAR, COLOURS = re.compile("[⠀-⣿]"), re.compile("[━╸╺].* %"), re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_a_terminal(arguments, width, folder):
    """What a command shows, without colours; of a bar that moves the last that was drawn."""
    parent, child = pty.openpty()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": str(width), "LINES": "50", "TERM": "xterm"}
    for name in ("NO_COLOR", "FORCE_COLOR"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "bigbatch", *arguments]
    running = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=child, stderr=child, env=environment)
    os.close(child)
    shown = b""
    try:
        while part := os.read(parent, 4096):
            shown += part
    except OSError:  # Linux, at the end
        pass
    os.close(parent)
    assert running.wait() == 0, shown.decode()
    lines = []
    for line in COLOURS.sub("", shown.decode().replace("\r\n", "\n")).replace("\r", "\n").split("\n"):
        if not line.strip() or SPINNER.search(line):
            continue
        if lines and BAR.search(line) and BAR.search(lines[-1]):
            lines.pop()
        lines.append(line.rstrip())
    return "\n".join(lines) + "\n"


def capture(name, width):
    """What a command shows, as captures/ has it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "mine.py").write_text(FUNCTION)
        (Path(folder) / "mine.toml").write_text(SETTINGS)
        return on_a_terminal(COMMANDS[name], width, folder)


def path_of(name, width):
    return CAPTURES / f"{name}-{width}.txt"


def comparable(name, text):
    """A text without what differs from machine to machine: numbers, and with them the widths of columns and where lines are wrapped."""
    if name in EXACT:
        return text
    kept = "\n".join(line for line in text.splitlines() if " done, about " not in line)  # only said by what takes seconds
    return re.sub(r"\s+", " ", re.sub(r"[━─]+", "━", re.sub(r"[\d.,:-]*\d", "#", kept)))


def main():
    CAPTURES.mkdir(exist_ok=True)
    for name in COMMANDS:
        for width in WIDTHS:
            path_of(name, width).write_text(capture(name, width))
            print(path_of(name, width))


if __name__ == "__main__":
    main()
