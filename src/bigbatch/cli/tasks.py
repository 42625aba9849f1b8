"""`bigbatch tasks`: what can be trained out of the box."""


def tasks() -> None:
    """List the shipped tasks and their recipes."""
    from bigbatch.cli.tables import show
    from bigbatch.recipe import Recipe, recipe_names

    rows = []
    for name in recipe_names():
        r = Recipe.named(name)
        rows.append(
            [name, f"{r.num_train_samples:,}", r.batch.global_batch, r.optimizer.name, f"{r.optimizer.lr:g}", f"{r.total_epochs:g}"]
        )
    show("Tasks and their tuned recipes", ["task", "samples", "batch", "optimizer", "lr", "epochs"], rows)
