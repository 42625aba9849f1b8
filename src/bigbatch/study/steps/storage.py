"""Trials as a study of Optuna keeps them: in a SQLite file of the study's folder, or in a data base that several machines use.

Trial i has the point i of a scrambled Sobol sequence, whichever process asks for it. In a shared data base a process says every
`HEARTBEAT_S` that it is there; its trials are given to others once it was not heard of for `GRACE_S`.
"""

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bigbatch.core.checks import UserError
from bigbatch.core.extras import needed
from bigbatch.study.steps.space import Choice, Range, Space, sobol

if TYPE_CHECKING:
    import optuna

HEARTBEAT_S, GRACE_S = 30, 150
FOUND = "found"
"""Attribute of a trial of Optuna: what came of it."""
OutcomeName = Literal["reached", "stopped", "diverged"]


class Trial(NamedTuple):
    """One draw of the settings, ended."""

    values: dict[str, Any]  # by field
    seed: int
    outcome: OutcomeName
    updates: int  # to the target; made in all where it was not reached
    score: float | None  # best on validation data; None where it diverged


def check_driver(url: str) -> None:
    """Refuse a PostgreSQL data base without a driver for it.

    Raises:
        MissingExtra: With what to install.
    """
    if url.partition(":")[0] in ("postgresql", "postgresql+psycopg"):
        with needed("a PostgreSQL storage", extra="postgresql"):
            import psycopg  # noqa: F401


class Storage(AbstractContextManager["Storage"]):
    """Where trials are kept; closed at the end of its block.

    Args:
        url: Of the data base, such as sqlite:///trials.db or postgresql://user@host/name.
        shared: Whether other processes may use it meanwhile.

    Raises:
        UserError: If it can't be used.
    """

    def __init__(self, url: str, *, shared: bool) -> None:
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        beats: dict[str, Any] = {"heartbeat_interval": HEARTBEAT_S, "grace_period": GRACE_S} if shared else {}
        told = url.partition("@")[2] or url  # without a password
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of heartbeats
                self.storage = optuna.storages.RDBStorage(url, **beats)
        except ImportError as error:
            raise UserError(f"storage {told}: needs a driver that is not installed ({' '.join(str(error).split())[:200]})") from None
        except SQLAlchemyError as error:
            why = " ".join(str(error.__cause__ or error).split())[:200]
            raise UserError(f"storage {told}: can't be used ({why})") from None
        self.shared, self._told = shared, told

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        self.storage.remove_session()
        self.storage.engine.dispose()
        if isinstance(error, SQLAlchemyError | optuna.exceptions.StorageInternalError):
            why = " ".join(str(error.__cause__ or error).split())[:200]
            raise UserError(f"storage {self._told}: is lost ({why}); the same command goes on when it is there again") from error


class StoredTrials:
    """The trials of one batch and space.

    Args:
        storage: Where they are kept.
        name: In the storage.
        space: What is searched, unless another process has begun: the batch before may have looked otherwise to it.
        longest: Updates of the longest run, likewise.
        seed: Of the sequence of points; trial i runs with seed + i.
        asked: What a person asked for, as JSON has it.

    Attributes:
        space: What is searched.
        longest: Updates of the longest run.

    Raises:
        UserError: If trials of this name are of something else.
    """

    def __init__(self, storage: Storage, name: str, space: Space, *, longest: int, seed: int, asked: Mapping[str, Any]) -> None:
        import optuna

        self._seed, self._storage = seed, storage
        self._study = optuna.create_study(storage=storage.storage, study_name=name, load_if_exists=True, direction="minimize")
        if "begun" not in self._study.user_attrs:
            self._study.set_user_attr("begun", {"asked": dict(asked), "space": [list(each) for each in space], "longest": longest})
        begun = self._study.user_attrs["begun"]
        if begun["asked"] != asked:
            changed = next((key for key in asked if begun["asked"].get(key) != asked[key]), "set of arguments")
            raise UserError(f"{name}: was begun with another {changed}; give another --out or --storage, or the same arguments")
        self.space: Space = tuple(
            Range(*each) if len(each) == len(Range._fields) else Choice(each[0], tuple(each[1])) for each in begun["space"]
        )
        self.longest: int = begun["longest"]
        self._study.sampler = _sampler(self.space, seed)
        if not storage.shared:
            self._give_back(self._running())  # a process of before began them, and is gone

    def ended(self) -> list[Trial]:
        """The trials that ended, by number."""
        found = []
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state.is_finished() and FOUND in trial.user_attrs:
                found.append(Trial(dict(trial.params), self._seed + trial.number, **trial.user_attrs[FOUND]))
        return found

    def num_running(self) -> int:
        """Trials that other processes are at; those of processes that are gone are given back before."""
        import optuna

        if not self._storage.shared:
            return 0
        before = {trial.number: trial for trial in self._running()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)
        left = {trial.number for trial in self._running()}
        lost = [trial for number, trial in before.items() if number not in left]
        now = self._study.get_trials(deepcopy=False)
        for trial in lost:
            if FOUND not in now[trial.number].user_attrs:
                self._study.enqueue_trial(trial.params)
        return len(left)

    @contextmanager
    def ask(self, number: int) -> "Iterator[list[optuna.Trial]]":
        """Trials to be run in the block, which tells what came of each; those it leaves behind are given back."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Heartbeat of storage")  # told below
            asked = [self._study.ask(_distributions(self.space)) for _ in range(number)]
        over = threading.Event()

        def beat() -> None:
            while not over.is_set():
                for trial in asked:
                    with suppress(Exception):  # a data base that is away for a moment
                        self._storage.storage.record_heartbeat(trial._trial_id)
                over.wait(HEARTBEAT_S)
            self._storage.storage.remove_session()  # this thread's

        beating = threading.Thread(target=beat, daemon=True, name="heartbeats of trials")
        if self._storage.shared:
            beating.start()
        try:
            yield asked
        finally:
            over.set()
            if self._storage.shared:
                beating.join()
            own = {trial.number for trial in asked}
            self._give_back([trial for trial in self._running() if trial.number in own])

    def seed_of(self, trial: "optuna.Trial") -> int:
        """The seed of a trial's run."""
        return self._seed + trial.number

    def tell(self, trial: "optuna.Trial", outcome: OutcomeName, updates: int, score: float | None) -> None:
        """Keep what came of a trial."""
        import optuna

        trial.set_user_attr(FOUND, {"outcome": outcome, "updates": updates, "score": score})
        if outcome == "reached":
            self._study.tell(trial, updates)
        else:
            states = optuna.trial.TrialState
            self._study.tell(trial, state=states.PRUNED if outcome == "stopped" else states.FAIL)

    def _running(self) -> "list[optuna.trial.FrozenTrial]":
        import optuna

        return self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))

    def _give_back(self, trials: "Sequence[optuna.trial.FrozenTrial]") -> None:
        """Their points are asked for anew."""
        import optuna

        for trial in trials:
            self._study.enqueue_trial(trial.params)
            self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _distributions(space: Space) -> "dict[str, optuna.distributions.BaseDistribution]":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    made: dict[str, optuna.distributions.BaseDistribution] = {}
    for each in space:
        if isinstance(each, Choice):
            made[each.field] = CategoricalDistribution(each.values)
        elif each.is_whole:
            made[each.field] = IntDistribution(round(each.low), round(each.high), log=each.scale == "log")
        else:
            made[each.field] = FloatDistribution(each.low, each.high, log=each.scale == "log")
    return made


def _sampler(space: Space, seed: int) -> "optuna.samplers.BaseSampler":
    import optuna

    places: dict[str, tuple[int, Range | Choice]] = {each.field: (index, each) for index, each in enumerate(space)}

    class SobolByNumber(optuna.samplers.BaseSampler):
        def infer_relative_search_space(self, *_: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, *_: Any) -> dict[str, Any]:
            return {}

        def sample_independent(self, _: Any, trial: Any, param_name: str, *__: Any) -> Any:
            index, each = places[param_name]
            return each.at(sobol(trial.number, len(space), seed)[index])

    return SobolByNumber()
