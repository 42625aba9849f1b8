"""Ways to run a recipe, which every study calls alike: a task, a Python function of the user's, or a command."""

from bigbatch.runner.command import CommandRunner
from bigbatch.runner.function import FunctionRun, FunctionRunner
from bigbatch.runner.protocol import Request, Runner
from bigbatch.runner.task import TaskRunner, runner_of

__all__ = ["CommandRunner", "FunctionRun", "FunctionRunner", "Request", "Runner", "TaskRunner", "runner_of"]
