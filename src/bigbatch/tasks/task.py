"""What a task is: data, model, loss and metric. A user's own task is the same small protocol, named `module:Class`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from bigbatch.core.checks import UserError, unknown
from bigbatch.core.metric import Metric, metric_of
from bigbatch.core.users_module import import_users_module

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.data import Dataset

SHIPPED = {
    "digits/mlp": "bigbatch.tasks.digits_mlp:DigitsMLP",
    "fashion_mnist/cnn": "bigbatch.tasks.fashion_mnist_cnn:FashionMNISTCNN",
    "fashion_mnist/lstm": "bigbatch.tasks.fashion_mnist_lstm:FashionMNISTLSTM",
    "fashion_mnist/mlp": "bigbatch.tasks.fashion_mnist_mlp:FashionMNISTMLP",
    "fashion_mnist/resnet8": "bigbatch.tasks.fashion_mnist_resnet8:FashionMNISTResNet8",
    "fashion_mnist/vit": "bigbatch.tasks.fashion_mnist_vit:FashionMNISTViT",
    "text/gpt": "bigbatch.tasks.text_gpt:TextGPT",
    "text/lstm": "bigbatch.tasks.text_lstm:TextLSTM",
}


class Splits(NamedTuple):
    """The data of a task.

    A `TensorDataset` of (inputs, targets) is fed from memory, of the GPU where it fits; any other map-style data set through a DataLoader,
    for a GPU by processes to which it must pickle. A stream, an `IterableDataset` with a `__len__`, is read in its own order, whole, by
    every worker; it must give the same samples each time, for a resumed run skips to where it stands.

    Inputs and targets are tensors, or mappings, tuples and lists of tensors, nested in any way. An item that is no pair, such as one dict
    that holds its labels too, is both: the inputs and the targets.
    """

    train: "Dataset[Any]"
    validation: "Dataset[Any]"  # settings are chosen on this
    test: "Dataset[Any]"  # used once, at the end of a run


@runtime_checkable
class Task(Protocol):
    """Data, model, loss and metric. See examples/own_task.py.

    A model is called by the structure of its inputs: with a tensor as it is, with a mapping as keyword arguments, with a tuple or list as
    positional ones. A task may define four things besides, see `bigbatch.tasks.optional_parts` and examples/own_language_model.py:
    `collate(samples)` makes (inputs, targets) of a list of samples; `outputs(model, inputs)` calls the model; `weights(targets)`, shape
    (n,), is how much each sample counts, such as its number of tokens; `tokens_per_sample` is a number, or "weights". With `weights`,
    losses and scores are each sample's sum, and every mean is their sum over that of the weights. With `tokens_per_sample`, noise scales
    are reported in tokens too.
    """

    name: str

    @property
    def metric(self) -> str | Metric:
        """What the mean of `scores` is; a name alone, such as "accuracy", is a share of samples, of which more are better."""
        ...

    def splits(self) -> Splits:
        """The data, the same at every call."""
        ...

    def model(self, **options: Any) -> "nn.Module":
        """A freshly initialised model; `options` are the recipe's `[model]` section."""
        ...

    def losses(self, outputs: Any, targets: Any) -> "Tensor":
        """One loss per sample, shape (n,), from `outputs = model(inputs)`. The trainer owns the mean."""
        ...

    def scores(self, outputs: Any, targets: Any) -> "Tensor":
        """One score per sample, shape (n,); times the metric's scale it is in the metric's unit, so a right answer's is 1, not 100 %."""
        ...


def load_task(name: str, *, data: str | Path | None = None) -> Task:
    """A shipped task by name, or a user's own as `module:Class` (the current folder is searched too).

    Args:
        name: As in `SHIPPED`, or `module:Class`.
        data: Folder of the data set, passed to the task as `data`; None leaves the search to the task.

    Returns:
        The task, built without arguments other than `data`.

    Raises:
        UserError: If the task is unknown, can't be imported, or lacks part of the protocol, or its metric is not one.

    >>> load_task("digits/mlp").metric
    'accuracy'
    """
    if name in SHIPPED:
        module_name, _, class_name = SHIPPED[name].partition(":")
    elif ":" in name:
        module_name, _, class_name = name.partition(":")
    else:
        raise UserError(unknown("task", name, SHIPPED) + "; your own is given as module:Class")
    cls = _import(name, module_name, class_name)
    task = cls() if data is None else cls(data=data)
    missing = [part for part in ("name", "metric", "splits", "model", "losses", "scores") if not hasattr(task, part)]
    if missing:
        raise UserError(f"task {name!r}: lacks {', '.join(missing)}; see examples/own_task.py for the whole protocol")
    metric_of(task.metric)
    return task  # type: ignore[no-any-return]


def _import(name: str, module_name: str, class_name: str) -> Any:
    module = import_users_module(f"task {name!r}", module_name)
    if not hasattr(module, class_name):
        raise UserError(f"task {name!r}: " + unknown(f"class in {module_name}", class_name, [n for n in dir(module) if n[:1].isupper()]))
    return getattr(module, class_name)
