"""As many updates and samples in another shape: small batches early, larger ones later.

Source: batch warm-ups (Merrill et al. 2025, arXiv:2505.23971): noise matters least at the beginning (McCandlish et al. 2018,
        arXiv:1812.06162), where progress is made by number of updates.
Rule:   the first `SHARE` of the updates at `FIRST` times the batch, all others at one larger batch, so that both sums are kept.
"""

SHARE, FIRST = 1 / 3, 0.25
CHOICES = ({}, {"first": 0.5}, {"share": 0.5}, {"first": 0.5, "share": 0.5})


def recipe(planned, *, share=SHARE, first=FIRST):
    """The Muon rule's plan with listed batches; the rates stay those of the mean batch."""
    updates, batch = planned.num_updates, planned.batch.global_batch
    early, small = round(share * updates), round(first * batch)
    samples = round(planned.budget.epochs * planned.num_train_samples)
    large = round((samples - early * small) / (updates - early))
    own = {"kind": "schedule", "steps": [[early * small, large]], "lr": "none"}
    return planned.replace({"batch.global_batch": small, "batch.rule": own})
