"""The same training in a loop of one's own, with nothing of the adapter: the reference for tests/integrations."""

import torch
from tests.integrations.trainer_run import KINDS

from bigbatch import Clock, build_optimizer
from bigbatch.noise import NoiseScaleMonitor, layers_of
from bigbatch.schedules.from_recipe import schedule_of


def own_loop(kind, recipe):
    """Rates, noise scales up to each update, and signal and noise of each; batches in order, the last of an epoch short."""
    make_model, make_data = KINDS[kind]
    model, data = make_model(), make_data()
    optimizer, schedule = build_optimizer(model, recipe), schedule_of(recipe)
    monitor = NoiseScaleMonitor(model, population=len(data), parts=layers_of(model))
    micro, clock = recipe.batch.micro_batch, Clock()
    rates, scales, layers, norms = [], [], [], []
    while clock.samples < recipe.total_samples:
        start = clock.samples % len(data)
        numbers = range(start, min(start + recipe.batch.global_batch, len(data)))
        passes = [numbers[i : i + micro] for i in range(0, len(numbers), micro)]
        columns = [{name: column[list(chosen)] for name, column in data.columns.items()} for chosen in passes]
        num_tokens = [int((c["labels"][:, 1:] != -100).sum()) if kind == "gpt2" else 1 for c in columns]
        model.train()
        for inputs, weight in zip(columns, num_tokens, strict=True):
            loss = model(**inputs).loss * weight / sum(num_tokens)  # of a mean over tokens, or over images
            loss.backward()
            monitor.micro_batch(micro, divisor=micro * sum(num_tokens) / weight)
        monitor.update()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip_norm)))
        for group in optimizer.param_groups:
            group["lr"] = recipe.optimizer.lr * schedule(clock)
        rates.append(group["lr"])
        optimizer.step()
        optimizer.zero_grad()
        scales.append(monitor.estimate(last=500).noise_scale)
        layers.append({name: monitor.estimate(name, last=500).noise_scale for name in layers_of(model)})
        clock = clock.after(len(numbers))
    measured = monitor.state_dict()["measured"].tolist()
    return {"rates": rates, "scales": scales, "layers": layers, "measured": measured, "norms": norms, "weights": model}
