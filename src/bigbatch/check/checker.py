"""Check a training loop: run it in several arrangements of one batch, compare, and find out why where they differ.

def train(probe):
    model = Net()
    loader = DataLoader(probe.data(dataset), batch_size=probe.micro_batch, shuffle=True)
    ...                                     # your loop: probe.accumulation micro-batches an update, probe.epochs epochs

print(check(train).sentence())
"""

from collections.abc import Callable, Collection

from bigbatch.check.arrangement import WHOLE, Arrangement, Setup, arrangements, batch_for
from bigbatch.check.diagnosis import culprits_of, order_repeats, rows_of
from bigbatch.check.experiments import Experiments
from bigbatch.check.processes import Function, LoopFailed
from bigbatch.check.report import Report, Row
from bigbatch.core.checks import UserError, check_positive, unknown

ALLOWED = ("batch_norm", "dropout")
"""What may change an update by design, and can be taken out."""
OF_TYPES = ("dtype", "Double", "Float", "scalar type", "float64")
"""Words in errors of a loop that can't run in 64 bits."""


def check(
    function: Function,
    *,
    workers: Collection[int] = (1, 2, 4),
    allow: Collection[str] = (),
    name: str | None = None,
    time_limit_s: float = 60.0,
    say: Callable[[str], None] | None = None,
) -> Report:
    """Run a loop with its batch in one piece, in 2 and 4 micro-batches and on several workers, and compare every update.

    Each run is a process of its own per worker, on the CPU, in 64 bits where the loop can. Where updates differ, suspects are removed one
    by one, and a culprit is who makes the difference.

    Args:
        function: Called as `function(probe)`; trains for `probe.epochs` epochs as `bigbatch.check.Probe` says.
        workers: Numbers of workers; 1 is the reference and always among them.
        allow: What is taken out before anything is compared: "dropout", "batch_norm".
        name: Of the loop, for messages; the function's if left out.
        time_limit_s: Of one run; there are 7, and 10 to 40 more where updates differ.
        say: Told before each run what it is.

    Raises:
        UserError: If the loop fails, takes too long, makes no update or does not use its probe; or an argument is out of range.
    """
    for number in workers:
        if not 1 <= number <= 16:
            raise UserError(f"workers = {number}: must be from 1 to 16; give some of 1, 2, 4, 8")
    for each in allow:
        if each not in ALLOWED:
            raise UserError(f"allow: {unknown('suspect', each, ALLOWED)}")
    check_positive("time_limit_s", time_limit_s, "give seconds, such as 60")
    called = name or str(getattr(function, "__name__", type(function).__name__))
    global_batch, remainder = batch_for(workers)
    setup = Setup(WHOLE, global_batch, remainder, removed=frozenset(allow))
    experiments, notes = _first_run(function, setup, called, time_limit_s, say)
    chosen = arrangements(workers)
    rows = rows_of(experiments, chosen)
    culprits = culprits_of(experiments, rows)
    notes += [f"{each} was taken out, as allowed" for each in sorted(set(allow))]
    notes += _notes(experiments, rows, chosen) if not culprits else []
    return Report(called, tuple(rows), tuple(culprits), tuple(notes), experiments.tolerance, experiments.num_runs)


def _first_run(
    function: Function, setup: Setup, name: str, time_limit_s: float, say: Callable[[str], None] | None
) -> tuple[Experiments, list[str]]:
    """The reference, in 64 bits or else in 32; with a bound of clipping that the following runs feel."""
    notes = []

    def made(setup: Setup) -> Experiments:
        return Experiments(function, setup, name=name, time_limit_s=time_limit_s, say=say)

    experiments = made(setup)
    try:
        record = experiments.records(WHOLE)[0]
    except LoopFailed as error:
        if not any(word in error.failure.error for word in OF_TYPES):
            raise
        notes.append(f"in 32 bits, since 64 can't be: {error.failure.error}; build tensors and the model in probe.dtype")
        setup = setup._replace(float64=False)
        experiments = made(setup)
        record = experiments.records(WHOLE)[0]
    if not record.steps:
        raise UserError(f"{name}: made no update: no optimizer of torch.optim made a step; let it train for probe.epochs epochs")
    if "read" not in record.facts:
        raise UserError(
            f"{name}: did not read probe.micro_batch or probe.accumulation, so it can't be cut differently; "
            "take the samples of a forward pass and the micro-batches of an update from the probe"
        )
    if "watched" not in record.facts:
        notes.append("samples are not watched: give the training set to probe.data, to check ragged batches and their order too")
    norms = [norm for norm in record.norms if norm > 0]
    if norms:
        num_runs = experiments.num_runs
        experiments = made(setup._replace(max_norm=min(norms) / 2))
        experiments.num_runs = num_runs
    return experiments, notes


def _notes(experiments: Experiments, rows: list[Row], chosen: list[Arrangement]) -> list[str]:
    notes = []
    dropped = {row.dropped for row in rows if row.dropped}
    if dropped:
        notes.append(f"{max(dropped)} of {experiments.setup.num_samples} samples are left out of every epoch, without changing an update")
    if any(order_repeats(experiments.records(each)[0]) for each in chosen):
        notes.append("both epochs draw their samples in the same order")
    return notes
