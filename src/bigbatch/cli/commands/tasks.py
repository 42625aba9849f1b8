"""`bigbatch tasks`: what can be trained out of the box."""

from bigbatch.cli.display import output


def tasks(json: output.Json = None) -> None:
    """List the shipped tasks and their recipes, what each needs, and how long a run takes."""
    from bigbatch.cli.display.tables import say, show
    from bigbatch.recipe import Recipe, recipe_names
    from bigbatch.recipe.about import how_to_get, needs_of, seconds_of

    output.check(json)
    found = {name: Recipe.named(name) for name in recipe_names()}
    if json != output.STANDARD:
        rows = [
            [
                name,
                f"{r.num_train_samples:,}",
                r.batch.global_batch,
                r.optimizer.name,
                f"{r.total_epochs:g}",
                needs_of(name),
                _time(seconds_of(name)),
            ]
            for name, r in found.items()
        ]
        columns = ["recipe", "samples", "batch", "optimizer", "epochs", "needs", "a run"]
        show("Tasks and their tuned recipes", columns, rows, numbers={"samples", "batch", "epochs", "a run"})
        for what, how in how_to_get().items():
            say(f"{what}: {how}")
        say("A run: on two shared cores. A recipe of a task with another optimizer: bigbatch train text/gpt --recipe text/gpt-muon")
    about = {name: {"needs": needs_of(name), "seconds": seconds_of(name)} for name in found}
    output.write_json(json, {"tasks": [recipe.to_dict() for recipe in found.values()], "about": about})


def _time(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 90 else f"{seconds / 60:.1f} min"
