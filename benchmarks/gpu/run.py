"""All that a GPU is needed for, in a few minutes: correctness, hidden waits, speed, and the study's largest batches. See docs/gpu.md.

    PYTHONPATH=src python3 benchmarks/gpu/run.py                       (or: make gpu PYTHON=python3)
    PYTHONPATH=src python3 benchmarks/gpu/run.py --device cpu --quick  a dry run

Parts run one after the other, the most valuable first, each in a process of its own under a limit of its own, and write <part>.json into
benchmarks/gpu. Started again, parts that are complete for this commit and device are not run again. One that fails stops no other.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[0] = str(ROOT)  # the parts, and other benchmarks, as modules
NEEDED = ("torch", "numpy", "pydantic", "platformdirs", "tomli_w", "filelock", "pytest")
NAMES = {"tomli_w": "tomli-w"}
PARTS = {"suite": 160, "waits": 90, "steps": 70, "norms": 30, "loops": 110, "study": 600}
"""Name to limit in seconds, the most valuable first; the study takes what is left."""
QUICK = dict.fromkeys(PARTS, 400)  # they take seconds; on a busy machine, minutes


def missing():
    return [NAMES.get(name, name) for name in NEEDED if importlib.util.find_spec(name) is None]


def commit():
    """Of the checkout; without git, of its files."""
    if (ROOT / ".git").exists() and (name := _git("rev-parse", "--short", "HEAD")):
        return name + ("-changed" if _git("status", "--porcelain", "--untracked-files=no", "--", "*.py") else "")  # results do not count
    files = sorted([*(ROOT / "src").rglob("*.py"), *HERE.glob("*.py")])
    return "files-" + hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def _git(*arguments):
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def facts_of(device, *, quick):
    import torch

    found = {"commit": commit(), "device": "cpu", "torch": str(torch.__version__), "python": sys.version.split()[0], "quick": quick}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"device": properties.name, "memory_gb": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda}
        found |= {"driver": driver(), "cudnn": torch.backends.cudnn.version(), "capability": f"{properties.major}.{properties.minor}"}
    found["triton"] = version("triton")
    return found


def driver():
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split("\n")[0].strip() or None


def version(package):
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def environment(scratch, *, dry):
    """For the parts: the checkout's modules, and caches outside of a home that may be read-only."""
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH"))))
    caches = {"BIGBATCH_CACHE": "cache", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "MPLCONFIGDIR": "matplotlib"}
    own = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"} | {name: str(scratch / folder) for name, folder in caches.items()}
    return os.environ | own | ({"OMP_NUM_THREADS": "1"} if dry else {})


def run_part(name, path, facts, options, *, limit, env):
    """Run one; returns why it ended early, if it did."""
    command = [
        sys.executable,
        "-m",
        f"benchmarks.gpu.{name}",
        "--file",
        str(path),
        "--facts",
        json.dumps(facts),
        "--seconds",
        f"{limit - 5:g}",
    ]
    log = path.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen([*command, *options], cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            return f"stopped after {limit:.0f} s"
        finally:
            _end(process)
    if code == 0:
        log.unlink()
        return None
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"ended with {code}: {lines[-1][:200] if lines else 'without a word'} ({log.name})"


def _end(process):
    """A part and what it started: it leads a session of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def interrupt(*_):
    raise KeyboardInterrupt


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true", help="small shapes, few rounds: a dry run")
    parser.add_argument("--out", type=Path, help="folder for the results; benchmarks/gpu if left out, a temporary one of a dry run")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seconds", type=float, default=535.0, help="for all parts")
    parser.add_argument("--data", type=Path, default=os.environ.get("BIGBATCH_DATA"), help="folder with Fashion-MNIST's four .gz files")
    given = parser.parse_args()
    if absent := missing():
        print(f"make gpu: packages are missing: {' '.join(absent)}; install them, or carry their wheels (docs/gpu.md)", file=sys.stderr)
        return 2
    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        print(f"make gpu: torch {torch.__version__} sees no GPU; a dry run: benchmarks/gpu/run.py --device cpu --quick", file=sys.stderr)
        return 2
    began, facts = time.monotonic(), facts_of(given.device, quick=given.quick)
    print(", ".join(f"{name} {value}" for name, value in facts.items() if value not in (None, False)), flush=True)
    signal.signal(signal.SIGTERM, interrupt)
    name = f"bigbatch-gpu-{os.getuid()}"
    with tempfile.TemporaryDirectory(prefix="bigbatch-gpu-") as temporary:
        dry = given.device == "cpu"
        out = given.out or (Path(temporary) / "results" if dry else HERE)
        out.mkdir(parents=True, exist_ok=True)
        scratch = Path(temporary) / "scratch" if dry else Path(tempfile.gettempdir()) / name
        scratch.mkdir(parents=True, exist_ok=True)
        ended = run_parts(given, facts, out, began=began, env=environment(scratch, dry=dry))
        from benchmarks.gpu.table import show

        return show({part: out / f"{part}.json" for part in given.parts}, facts, ended)


def run_parts(given, facts, out, *, began, env):
    from benchmarks.gpu.part import read_part

    options = ["--device", given.device, *(["--quick"] if given.quick else []), *(["--data", str(given.data)] if given.data else [])]
    ended = {}
    try:
        for part in given.parts:
            path, left = out / f"{part}.json", given.seconds - (time.monotonic() - began)
            stored = read_part(path)
            if stored.get("complete") and stored.get("facts") == facts:
                print(f"{part}: complete already", flush=True)
                continue
            limit = min((QUICK if given.quick else PARTS)[part], left)
            if limit < 10:
                ended[part] = "no time was left; start again to go on"
                continue
            print(f"{part}: at most {limit:.0f} s", flush=True)
            if (why := run_part(part, path, facts, options, limit=limit, env=env)) is not None:
                ended[part] = why
                print(f"{part}: {why}", flush=True)
    except KeyboardInterrupt:
        ended[part] = "interrupted; start again to go on"
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {time.monotonic() - began:.0f} s", flush=True)
    return ended


if __name__ == "__main__":
    sys.exit(main())
