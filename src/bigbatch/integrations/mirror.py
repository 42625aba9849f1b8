"""A run's folder, or a study's, mirrored to a tracker: what the record says is read and sent on.

Nothing is written there but `tracking-NAME.json`: which run of the tracker it is, and what was sent. The record may be cut back by a run
that is resumed, and written again to the same bits: what was sent once is not sent again.
"""

import json
import math
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bigbatch.core.checks import OutputError
from bigbatch.core.storage.writing import write_atomically
from bigbatch.integrations.tracker import Place, Tracker, begin
from bigbatch.recipe import Recipe

MOST_POINTS = 1000
"""Of a plot by update; a run that has more updates has every so-manyth sent."""
WINDOW = 100
"""Updates that a noise scale is taken over: mean noise over mean signal."""


class RunMirror:
    """One run.

    Args:
        tracker: Its name.
        place: Of the run; an id that `tracking-NAME.json` holds goes on.
    """

    def __init__(self, tracker: str, place: Place) -> None:
        self._tracker, self._place = tracker, place
        self._state: dict[str, Any] = {"id": None, "sent": {}, "ended_at": -1, **_json(_state_file(place.folder, tracker))}
        self._run: Tracker | None = None
        self._file, self._offset = 0, 0  # inode, bytes read
        self._stride = 1
        self._outcome = ""
        self._noise: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    def look(self) -> None:
        """Send what is new."""
        if self._size() == self._state["ended_at"]:
            return
        for line in self._new_lines():
            self._send(line)
        if self._run is not None:
            self._run.flush()
            self._save()
            if self._outcome:
                self.end()

    def end(self) -> None:
        """Close the run; "stopped", if its record does not say how it ended."""
        if self._run is None:
            return
        result = _json(self._place.folder / "result.json")
        self._run.summary({name: value for name, value in result.items() if isinstance(value, int | float)})
        for name in ("recipe.toml", "result.json", "report.html"):
            if (path := self._place.folder / name).exists():
                self._run.artefact(path)
        self._run.end(self._outcome or "stopped")
        self._state["ended_at"] = self._offset if self._outcome else -1
        self._save()
        self._run = None

    def _send(self, line: Mapping[str, Any]) -> None:
        kind = line["kind"]
        if kind == "start":
            self._begin(line)
        elif kind in ("end", "diverged"):
            self._outcome = "finished" if kind == "end" else "failed"
        updates, samples = line.get("update"), line.get("samples")
        if updates is None or samples is None or self._run is None:
            return
        values = {name: float(value) for name, value in self._values(line).items() if value is not None and math.isfinite(float(value))}
        track = f"{kind} {line.get('split', '')}".rstrip()
        due = kind not in ("update", "noise") or updates % self._stride == 0 or updates == 1
        if values and due and updates > self._state["sent"].get(track, -1):
            self._run.log(values, updates=updates, samples=samples)
            self._state["sent"][track] = updates

    def _begin(self, line: Mapping[str, Any]) -> None:
        recipe = Recipe.from_saved(line["recipe"])
        self._stride = max(1, -(-recipe.num_updates // MOST_POINTS))
        if self._run is None:
            self._run = begin(self._tracker, self._place._replace(id=self._state["id"]))
        if self._state["id"] is None:
            self._state["id"] = self._run.id
            facts = {name: line[name] for name in ("task", "workers", "micro_batch", "device") if name in line}
            self._run.parameters({**recipe.to_flat_dict(), **facts})
            self._save()

    def _values(self, line: Mapping[str, Any]) -> dict[str, float | None]:
        """What is plotted of a line of the record, by the names that TensorBoard's files have."""
        match line["kind"]:
            case "update":
                return {f"train/{name}": line[name] for name in ("loss", "lr", "global_batch")}
            case "evaluation":
                return {f"{line['split']}/{name}": line[name] for name in ("loss", "score")}
            case "reported":
                return {f"train/{name}": value for name, value in {**line["facts"], "loss": line["loss"]}.items()}
            case "weight_distance":
                return {"train/weight_distance": line["distance"]}
            case "curvature":
                return {"train/top_eigenvalue": line["eigenvalues"][0]}
            case "noise":
                signal, noise = next(iter(line["signal_and_noise"].values()))
                if signal is not None and noise is not None:
                    self._noise.append((signal, noise))
                signals, noises = (sum(values) for values in zip(*self._noise, strict=True)) if self._noise else (0.0, 0.0)
                return {"train/noise_scale": noises / signals} if signals > 0 else {}
        return {}

    def _new_lines(self) -> Iterator[dict[str, Any]]:
        """Whole lines since the last look; all of them, where the file is another one."""
        try:
            with (self._place.folder / "record.jsonl").open("rb") as file:
                inode = (self._place.folder / "record.jsonl").stat().st_ino
                if inode != self._file or file.seek(0, 2) < self._offset:
                    self._file, self._offset, self._outcome = inode, 0, ""
                    self._noise.clear()
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:  # not begun yet
            return
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        for text in data.splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # damaged: whoever reads the record says so
                continue
            if isinstance(line, dict) and "kind" in line:
                yield line

    def _size(self) -> int:
        try:
            return (self._place.folder / "record.jsonl").stat().st_size
        except FileNotFoundError:
            return 0

    def _save(self) -> None:
        _remember(self._place.folder, self._tracker, self._state)


class StudyMirror:
    """A study: one run for the whole, which gets the verdict, and one for each run in its folder, in a group with it.

    Args:
        tracker: Its name.
        folder: Of the study.
    """

    def __init__(self, tracker: str, folder: Path) -> None:
        self._tracker, self._folder = tracker, folder
        self._run: Tracker | None = None
        self._runs: dict[Path, RunMirror] = {}

    def look(self) -> None:
        """Send what is new of every run."""
        for record in sorted(self._folder.glob("*/*/record.jsonl")):
            if record.parent not in self._runs:
                self._runs[record.parent] = self._of(record.parent)
        for run in self._runs.values():
            run.look()

    def end(self) -> None:
        """The verdicts, as far as there are any; the newest comparison's files."""
        for run in self._runs.values():
            run.end()
        if not self._runs:
            return
        parent, comparisons = self._parent(), sorted(self._folder.glob("*.comparison.json"), key=lambda path: path.stat().st_mtime)
        for path in comparisons:
            comparison = _json(path)
            arms, planned = comparison["arms"][1:], comparison["arms"][-1]
            told = {f"{arm['name']} at {arm['global_batch']}": arm["sentence"] for arm in arms}
            told |= {f"outcome of {arm['name']} at {arm['global_batch']}": arm["outcome"] for arm in arms}
            parent.summary({"task": comparison["task"], **told, f"advice at {planned['global_batch']}": comparison["advice"]})
        for path in (*comparisons, self._folder / "report.html"):
            if path.exists():
                parent.artefact(path)
        parent.end("finished" if comparisons else "stopped")

    def _parent(self) -> Tracker:
        if self._run is None:
            known, name = _json(_state_file(self._folder, self._tracker)).get("id"), _name(self._folder)
            self._run = begin(self._tracker, Place(name, self._folder, known, group=name))
            _remember(self._folder, self._tracker, {"id": self._run.id})
        return self._run

    def _of(self, folder: Path) -> RunMirror:
        name = f"{folder.parent.name} {folder.name}"
        return RunMirror(self._tracker, Place(name, folder, parent=self._parent().id, group=_name(self._folder)))


def mirror_of(tracker: str, folder: Path, *, study: bool) -> RunMirror | StudyMirror:
    """Of a run's folder or a study's."""
    return StudyMirror(tracker, folder) if study else RunMirror(tracker, Place(_name(folder), folder))


def _name(folder: Path) -> str:
    """Two parts of its path, such as "runs/one"."""
    return "/".join(folder.absolute().parts[-2:])


def _state_file(folder: Path, tracker: str) -> Path:
    return folder / f"tracking-{tracker}.json"


def _remember(folder: Path, tracker: str, state: dict[str, Any]) -> None:
    """What a later process goes on from; on a full disk nothing, and it sends some again."""
    with suppress(OutputError):
        write_atomically(_state_file(folder, tracker), json.dumps(state).encode())


def _json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing, where it is missing or damaged."""
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}
