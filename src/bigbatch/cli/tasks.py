"""`bigbatch tasks`: what can be trained out of the box."""

from bigbatch.cli import output


def tasks(json: output.Json = None) -> None:
    """List the shipped tasks and their recipes."""
    from bigbatch.cli.tables import show
    from bigbatch.recipe import Recipe, recipe_names

    output.check(json)
    found = {name: Recipe.named(name) for name in recipe_names()}
    if json != output.STANDARD:
        rows = [
            [name, f"{r.num_train_samples:,}", r.batch.global_batch, r.optimizer.name, f"{r.optimizer.lr:g}", f"{r.total_epochs:g}"]
            for name, r in found.items()
        ]
        show("Tasks and their tuned recipes", ["task", "samples", "batch", "optimizer", "lr", "epochs"], rows)
    output.write_json(json, {"tasks": [recipe.to_dict() for recipe in found.values()]})
