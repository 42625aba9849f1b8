"""The digits task as a loop of one's own: as a function, and as a script that is given the recipe in a file."""

import argparse

import torch
import torch.nn.functional as F

import bigbatch
from bigbatch.core.tensors.alignment import aligned
from bigbatch.tasks import load_task
from bigbatch.train.data.sampler import sample_indices

ACCURACY = {"name": "accuracy", "unit": "%", "better": "higher", "margin": 0.5, "scale": 100.0}


def accuracy(model, split):
    inputs, targets = split.tensors
    with torch.no_grad():
        return (model(aligned(inputs.float())).argmax(1) == targets).double().mean().item()


def trained(recipe, log):
    task = load_task("digits/mlp")
    splits = task.splits()
    torch.manual_seed(recipe.seed)
    model = task.model(**recipe.model)
    optimizer = bigbatch.build_optimizer(model, recipe)
    scheduler = bigbatch.build_scheduler(optimizer, recipe)
    for update, start in enumerate(range(0, recipe.total_samples, recipe.batch.global_batch), 1):
        count = min(recipe.batch.global_batch, recipe.total_samples - start)
        inputs, targets = (t[sample_indices(recipe.seed, recipe.num_train_samples, start, count)] for t in splits.train.tensors)
        losses = F.cross_entropy(model(aligned(inputs.float())), targets, reduction="none")
        losses.backward(torch.full_like(losses, 1 / count))
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if update % 10 == 0:
            log(updates=update, loss=losses.mean().item(), score=accuracy(model, splits.validation))
    return accuracy(model, splits.test)


def train(recipe, run):
    run.score(trained(recipe, run.log))


train.metric = ACCURACY

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", required=True)
    torch.set_num_threads(1)
    recipe = bigbatch.Recipe.load(parser.parse_args().recipe)
    print("test accuracy", trained(recipe, lambda updates, loss, score: print(f"update {updates} loss {loss!r} validation {score!r}")))
