"""What a run needs, imported once, by the process that worker processes are forked from. Nothing here starts a thread or touches a GPU."""

import bigbatch.runner.function
import bigbatch.runner.task  # noqa: F401
