"""Tasks: data, model, loss and metric, a task a file."""

from bigbatch.tasks.task import SHIPPED, Splits, Task, load_task

__all__ = ["SHIPPED", "Splits", "Task", "load_task"]
