"""A task's runs by several worker processes of this machine, where a recipe has workers take steps of their own."""

import os
import pickle
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bigbatch.core.checks import Diverged, RunFailed, UserError, check_positive
from bigbatch.recipe import Recipe
from bigbatch.runner.process import run_process
from bigbatch.runner.protocol import Request
from bigbatch.runner.task import TaskRunner
from bigbatch.runner.worker_program import ANSWER, REQUEST
from bigbatch.train.state.interrupt import interruptible
from bigbatch.train.state.result import Result


class WorkersRunner(TaskRunner):
    """Runs recipes of local steps by several workers, and all others as `TaskRunner` does: by one, which takes the same steps as several.

    Args:
        runner: The runner of the task.
        num_workers: W.

    Raises:
        UserError: If the runner is not of a task: a command or function starts its own workers.
    """

    def __init__(self, runner: Any, num_workers: int) -> None:
        check_positive("workers", num_workers)
        if not isinstance(runner, TaskRunner):
            raise UserError(f"--workers {num_workers}: {runner.name} starts its own processes, if any; leave it out, or give a task")
        super().__init__(runner.task, **runner.options)
        self.num_workers = num_workers

    def run(self, recipe: Recipe, request: Request) -> Result:
        """As `Runner.run`; an unfinished run is continued from its checkpoint."""
        if not recipe.comm.local_steps:
            return super().run(recipe, request)
        with TemporaryDirectory() as folder:
            answer = self._run_workers(recipe, request, Path(folder))
        if isinstance(answer, Diverged):
            return self.diverged(answer, recipe, request)
        if isinstance(answer, Result):
            return answer
        raise answer

    def _run_workers(self, recipe: Recipe, request: Request, folder: Path) -> Any:
        (folder / "number.pickle").write_bytes(pickle.dumps((self.num_workers, request.out)))
        try:
            (folder / REQUEST).write_bytes(pickle.dumps((self.task, recipe, self.settings(request))))
        except Exception as error:
            raise UserError(
                f"{self.name}: can't be handed to worker processes ({' '.join(str(error).split())[:150]}); define it in a module, and "
                "keep lambdas and open files out of it"
            ) from None
        where = request.title or self.name
        with interruptible(request.out) as signalled:
            ended = run_process(
                [sys.executable, "-m", "bigbatch.runner.worker_program", str(folder)],
                folder=folder,
                cwd=Path.cwd(),
                environment={**os.environ, **dict(request.environment), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                on_line=lambda _: None,
                poll=lambda: False,
                asked=lambda: signalled.is_set() or (request.stop is not None and request.stop.is_set()),
            )
        if ended.stopped == "asked" or ended.code == 130:
            raise self.interrupted(request)
        answer = folder / ANSWER
        if not answer.exists() or (ended.code not in (0, 2, 3)):
            said = [line for line in (folder / "stderr.txt").read_text(errors="replace").splitlines() if line.strip()]
            raise RunFailed(f"{where}: its workers ended with exit code {ended.code}: {said[-1][:300] if said else 'they said nothing'}")
        return pickle.loads(answer.read_bytes())
