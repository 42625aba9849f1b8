"""Tasks: data, model, loss and metric, a task a file."""

from bigbatch.core.metric import ACCURACY, Metric, metric_of
from bigbatch.tasks.task import SHIPPED, Splits, Task, load_task

__all__ = ["ACCURACY", "SHIPPED", "Metric", "Splits", "Task", "load_task", "metric_of"]
