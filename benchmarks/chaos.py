"""Do runs survive a bad week? Random accidents, several to a run, in five ways of working together.

    python benchmarks/chaos.py [--accidents 200] [--modes all_reduce ...] [--minutes 60]

    kill worker      SIGKILL to a worker, as the kernel does when memory runs out
    kill launcher    SIGKILL to the process that was started, whose workers must end too
    silence          SIGSTOP to a worker, SIGCONT up to two seconds later
    stop             SIGTERM to the launcher
    warning          SIGUSR1 to the launcher, Slurm's warning before a time limit
    full disk        the run's folder, a file system of its own, is filled up, and emptied once the run has ended
    clock            what time.time says in all processes jumps by a day, forwards or backwards
    damaged file     after a stop, bytes of the record or of the checkpoint are changed before the run is resumed; the checkpoint is
                     refused, and then put back
    link cut         two hosts (network namespaces), the link between them is cut for 1, 10 or 60 seconds; they wait 20 for each other

digits/mlp, two workers. Whatever ends a run, it must end with the exit code and the line that the documentation promises
(docs/accidents.md); `--resume` then goes on. In the end: are the weights those of a run that was never disturbed, bit for bit; is every
update in the record once; is a process, a lock or shared memory left? Writes chaos.json beside this script after each run; can be
stopped and continued. Needs Linux and root for the full disk and the cut link; what can't be done here is left out and said.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from bigbatch.core.storage.folder_lock import OWNER
from bigbatch.train.state.checkpoint import read_checkpoint
from bigbatch.train.state.record import environment
from bigbatch.train.state.sharded_checkpoint import put_in_shards

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.distributed.jobs import Job, descendants, left_behind

from benchmarks import links

PATH = Path(__file__).with_suffix(".json")
UPDATES = 2432
TASK = ["digits/mlp", "--set", "budget.epochs=60", "--set", "batch.micro_batch=16", "--save-every", "0.5", "--quiet"]
MODES = {
    "all_reduce": [],
    "local_sgd": ["--comm", "local_sgd"],
    "gossip": ["--comm", "gossip", "--topology", "ring"],
    "fully_shard": ["--comm", "fully_shard"],
    "parameter_server": ["--comm", "parameter_server", "--set", "comm.mode=synchronous"],
}
KINDS = ("kill worker", "kill launcher", "silence", "stop", "warning", "full disk", "clock", "damaged file")
PER_RUN = 4
LIMIT_S = 240
JUMPING_CLOCK = """
import os, time

def jumping(clock, unit):
    def read():
        with open(os.environ["CHAOS_CLOCK"]) as file:
            return clock() + int(file.read()) * unit
    return read

time.time, time.time_ns = jumping(time.time, 1), jumping(time.time_ns, 10**9)
"""


class Bad(Exception):
    """What a run did that it must not."""


class Run:
    """One run and its accidents."""

    def __init__(self, mode, number, folder, kinds):
        self.mode, self.number = mode, number
        self.chance = random.Random(f"{mode} {number}")
        self.kinds = kinds
        self.out = folder / f"{mode}-{number}"
        self.out.mkdir()
        self.clock_file = folder / f"clock-{mode}-{number}"
        self.environment = {}
        if "clock" in kinds:
            self.clock_file.write_text("0\n")
            (folder / "site" / "sitecustomize.py").write_text(JUMPING_CLOCK)
            paths = os.pathsep.join(filter(None, [str(folder / "site"), os.environ.get("PYTHONPATH")]))
            self.environment = {"CHAOS_CLOCK": str(self.clock_file), "PYTHONPATH": paths}
        self.job = None
        self.happened = []

    def start(self, *more):
        with changed(os.environ, self.environment):
            self.job = Job(self.out, *TASK, *MODES[self.mode], "--workers", "2", *more, cwd=self.out.parent)

    def resume(self):
        self.start("--resume")

    def wait(self, updates):
        """Until so many updates are done; False if the run ended before."""
        end = time.monotonic() + LIMIT_S
        while self.done() < updates:
            if self.job.process.poll() is not None:
                return False
            if time.monotonic() > end:
                raise Bad(f"no update {updates} within {LIMIT_S} s, at {self.done()}")
            time.sleep(0.02)
        return True

    def done(self):
        return max((line.get("update", 0) for line in lines_of(self.out) if line["kind"] == "update"), default=0)

    def ends(self, code, words):
        """The run ends with this exit code and one line of these words, and nobody is left."""
        try:
            found, said = self.job.end(LIMIT_S)
        except subprocess.TimeoutExpired:
            raise Bad(f"did not end within {LIMIT_S} s") from None
        if found != code or not re.search(words, said) or "Traceback" in said or "bug" in said:
            raise Bad(f"exit code {found} instead of {code}, or not {words!r}: {said[-600:]!r}")
        self.leaves_nothing()

    def leaves_nothing(self):
        if left := left_behind(self.out, 30):
            raise Bad(f"left behind: {left}")

    def workers(self):
        """Process numbers of those that train."""
        if self.mode != "parameter_server":
            return self.job.workers()
        found = []
        for pid, _, _ in descendants(self.job.process.pid):
            with contextlib.suppress(OSError):
                found += [pid] if "BIGBATCH_ROLE=worker" in Path(f"/proc/{pid}/environ").read_text() else []
        return sorted(found)

    def suffer(self, kind):
        """One accident; the run goes on after it, by itself or by `--resume`."""
        getattr(self, kind.replace(" ", "_"))()
        self.happened.append(kind)

    def kill_worker(self):
        os.kill(self.chance.choice(self.workers()), signal.SIGKILL)
        if self.mode != "parameter_server":  # which starts it again
            self.ends(4, "SIGKILL.*--resume")
            self.resume()

    def kill_launcher(self):
        self.job.process.kill()
        self.job.end(LIMIT_S)
        self.leaves_nothing()
        self.resume()

    def silence(self):
        victim = self.chance.choice(self.workers())
        os.kill(victim, signal.SIGSTOP)
        time.sleep(self.chance.uniform(0.1, 2))
        os.kill(victim, signal.SIGCONT)

    def stop(self, number=signal.SIGTERM):
        self.job.process.send_signal(number)
        self.ends(130, "interrupted: stopped after update")
        self.resume()

    def warning(self):
        self.stop(signal.SIGUSR1)

    def full_disk(self):
        filler = self.out / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        self.ends(2, "error: .*(No space left|can't write)")
        filler.unlink()
        self.resume()

    def clock(self):
        new = self.clock_file.with_suffix(".new")
        new.write_text(self.chance.choice(["86400", "-86400"]) + "\n")
        new.replace(self.clock_file)  # at no time is it empty

    def damaged_file(self):
        self.job.process.send_signal(signal.SIGTERM)
        self.ends(130, "interrupted: stopped after update")
        if self.chance.random() < 0.5:
            path = self.out / "record.jsonl"
            damage(path, self.chance)
            self.resume()
            return
        path = self.chance.choice([self.out / "last.pt", *sorted((self.out / "shards").glob("last.*/*"))])
        whole = path.read_bytes()
        damage(path, self.chance)
        self.resume()
        self.ends(2, "error: checkpoint .*(damaged|not a bigbatch)")
        path.write_bytes(whole)
        self.resume()


def damage(path, chance):
    """Eight bytes in the middle of a file are other ones."""
    content = bytearray(path.read_bytes())
    at = chance.randrange(len(content) // 4, len(content) - 8)
    content[at : at + 8] = bytes(b ^ 0x55 for b in content[at : at + 8])
    path.write_bytes(content)


def run_between_hosts(mode, number, folder, seconds, undisturbed):
    """Two hosts of one worker each; the link of the second is cut for so many seconds."""
    out, chance = folder / f"{mode}-link-{number}", random.Random(f"link {mode} {number}")
    with links.shaped_hosts(2) as hosts:

        def start(*more):
            hosts.runs += 1
            shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": hosts.addresses[0], "MASTER_PORT": str(29500 + hosts.runs)}
            shared |= {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1", "BIGBATCH_TIMEOUT_S": "20"}
            command = [sys.executable, "-m", "bigbatch", "train", *TASK, *MODES[mode], "--out", str(out), *more]
            return [
                subprocess.Popen(
                    ["ip", "netns", "exec", name, *command], env={**shared, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True
                )
                for rank, name in enumerate(hosts.names)
            ]

        workers = start()
        wait_for(lambda: len(lines_of(out)) > chance.randrange(50, 400) or workers[0].poll() is not None)
        port = ["ip", "netns", "exec", hosts.switch, "ip", "link", "set", "port1"]
        links.command(*port, "down")
        time.sleep(seconds)
        links.command(*port, "up")
        said = [worker.communicate(timeout=LIMIT_S)[1] for worker in workers]
        codes = [worker.returncode for worker in workers]
        if codes != [0, 0]:
            if seconds < 20 or codes != [4, 4] or any("lost" not in text or "Traceback" in text for text in said):
                raise Bad(f"cut for {seconds} s: exit codes {codes}: {said}")
            workers = start("--resume")
            said = [worker.communicate(timeout=LIMIT_S)[1] for worker in workers]
            if [worker.returncode for worker in workers] != [0, 0]:
                raise Bad(f"not resumed after a cut of {seconds} s: {said}")
    if left := left_behind(out, 30):
        raise Bad(f"left behind: {left}")
    check_end(out, undisturbed)


def check_end(out, undisturbed):
    """The run in a folder is whole, and ended in the weights of an undisturbed one."""
    lines = lines_of(out)
    updates = [line["update"] for line in lines if line["kind"] == "update"]
    if updates != list(range(1, UPDATES + 1)) and not list(out.glob("record.jsonl.damaged*")):
        twice = [update for update, times in Counter(updates).items() if times > 1]
        raise Bad(f"{len(updates)} updates in the record instead of {UPDATES:,}; twice: {twice[:5]}")
    samples = [line["samples"] for line in lines if line["kind"] == "end"]
    if samples != [samples_of(UPDATES)]:
        raise Bad(f"{samples} samples instead of {samples_of(UPDATES)}")
    differing = [name for name, value in weights(out).items() if not torch.equal(value, undisturbed[name])]
    if differing:
        raise Bad(f"other weights than those of an undisturbed run: {differing}")
    if (out / OWNER).exists():
        raise Bad("the folder was not given back")


def samples_of(updates):
    return 1297 * 60 if updates == UPDATES else None


def lines_of(out):
    path = out / "record.jsonl"
    lines = []
    for text in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            lines += [line] if isinstance(line, dict) and "kind" in line else []
    return lines


def wait_for(condition):
    end = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > end:
            raise Bad(f"nothing within {LIMIT_S} s")
        time.sleep(0.02)


@contextlib.contextmanager
def changed(mapping, changes):
    before = dict(mapping)
    mapping.update(changes)
    try:
        yield
    finally:
        mapping.clear()
        mapping.update(before)


def shared_memory():
    return {path.name for path in Path("/dev/shm").glob("*")}


def weights(out):
    state = read_checkpoint(out / "last.pt", torch.device("cpu"))
    put_in_shards(out / "last.pt", state)
    return state["model"]


@contextlib.contextmanager
def small_disk(folder):
    """A file system of its own for a run that its disk is to fill up."""
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    subprocess.run(command, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def disturbed(mode, number, folder, kinds, undisturbed):
    """One run with accidents; what happened, and what went wrong, if anything did."""
    run, before = Run(mode, number, folder, kinds), shared_memory()
    with contextlib.ExitStack() as stack:
        if "full disk" in kinds:
            stack.enter_context(small_disk(run.out))
        try:
            run.start()
            at = 0
            for kind in kinds:
                at = max(at, run.done()) + run.chance.randrange(50, 300)
                if not run.wait(min(at, UPDATES - 100)):
                    raise Bad(f"ended before {kind}: {run.job.end()}")
                run.suffer(kind)
            run.ends(0, "")
            check_end(run.out, undisturbed)
            if new := {name for name in shared_memory() - before if name.startswith(("torch_", "bigbatch"))}:
                raise Bad(f"shared memory left: {new}")
        except (Bad, IndexError, OSError) as bad:
            return {"happened": run.happened, "bad": f"{type(bad).__name__}: {bad}"}
        finally:
            run.job.process.kill()
            for pid, _, _ in left_behind(run.out, 10):
                os.kill(pid, signal.SIGKILL)
    return {"happened": run.happened}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--accidents", type=int, default=200, help="in all, over all ways of working together")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--minutes", type=float, default=120.0, help="begin no run after this time")
    parser.add_argument("--json", type=Path, default=PATH)
    asked = parser.parse_args()
    stored = json.loads(asked.json.read_text()) if asked.json.exists() else {"runs": []}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    kinds, left_out = [*KINDS], []
    if os.geteuid() != 0:
        kinds.remove("full disk")
        left_out.append("full disk: needs root")
    cuts, why = links.available()
    if not cuts:
        left_out.append(f"link cut: {why}")
    end = time.monotonic() + 60 * asked.minutes
    done = {(run["mode"], run["number"]) for run in stored["runs"]}
    with tempfile.TemporaryDirectory(prefix="bigbatch-chaos-") as name:
        folder, whole = Path(name), {}
        (folder / "site").mkdir()
        for number in itertools.count():
            left = [mode for mode in asked.modes if summary(stored["runs"])["of_mode"].get(mode, 0) < asked.accidents / len(asked.modes)]
            if not left or time.monotonic() > end:
                break
            for mode in left:
                if (mode, number) in done or time.monotonic() > end:
                    continue
                if mode not in whole:
                    job = Job(folder / mode, *TASK, *MODES[mode], "--workers", "2", cwd=folder)
                    assert job.end()[0] == 0
                    whole[mode] = weights(folder / mode)
                chance = random.Random(number)
                chosen = chance.sample(kinds, PER_RUN)
                began = time.monotonic()
                if cuts and mode != "parameter_server" and number % 3 == 2:
                    seconds = chance.choice([1, 10, 60])
                    try:
                        run_between_hosts(mode, number, folder, seconds, whole[mode])
                        found = {"happened": [f"link cut {seconds} s"]}
                    except Bad as bad:
                        found = {"happened": [f"link cut {seconds} s"], "bad": str(bad)}
                else:
                    found = disturbed(mode, number, folder, chosen, whole[mode])
                run = {"mode": mode, "number": number, "seconds": round(time.monotonic() - began, 1), "commit": commit, **found}
                print(run, flush=True)
                stored["runs"].append(run)
                stored |= {"left_out": left_out, "environment": environment(), **summary(stored["runs"])}
                asked.json.write_text(json.dumps(stored, indent=1) + "\n")
                shutil.rmtree(folder / f"{mode}-{number}", ignore_errors=True)
    print(json.dumps(summary(stored["runs"]), indent=1))


def summary(runs):
    accidents = Counter(kind for run in runs for kind in run["happened"])
    modes = Counter(run["mode"] for run in runs for _ in run["happened"])
    return {
        "accidents": dict(accidents),
        "of_mode": dict(modes),
        "in_all": sum(accidents.values()),
        "bad": sum("bad" in run for run in runs),
    }


if __name__ == "__main__":
    main()
