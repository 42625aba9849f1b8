"""What studies store, as reports read it."""

import json

from bigbatch import Recipe
from bigbatch.noise.estimate import NoiseEstimate
from bigbatch.study.critical.study import CriticalStudy, Point, Trial
from bigbatch.study.noise import NoiseStudy, Stretch
from bigbatch.study.steps.space import Range
from bigbatch.study.steps.storage import Trial as SearchTrial
from bigbatch.study.steps.study import Point as SearchPoint
from bigbatch.study.steps.study import StepsStudy

RECIPE = Recipe.named("digits/mlp")


def noise(*, at_least, task="digits/mlp"):
    early = NoiseEstimate(50.0, 40.0, 65.0, 1.0, 50.0, 100)
    late = NoiseEstimate(float("nan"), 480.0, float("inf"), -0.1, 912.3, 400) if at_least else early
    study = NoiseStudy(task, RECIPE, (Stretch(0, 100, {"all": early}), Stretch(100, 500, {"all": late})), late)
    return json.loads(json.dumps(study.to_dict()))


def critical(*, at_least, task="digits/mlp"):
    def point(batch, updates, reached=True):
        runs = (Trial(0.1, 0, updates, reached, False, 0.9, 1.0),)
        return Point(batch, 0.1, False, runs, runs)

    points = (point(16, 725), point(64, 256), point(256, 140), point(1024, 90, reached=not at_least))
    return json.loads(json.dumps(CriticalStudy(task, "accuracy", 0.9, RECIPE, points).to_dict()))


def branches(*, at_least=False, value=500.0, task="digits/mlp"):
    ways = [{"global_batch": batch, "losses": [1.5, 1.52], "rate_factor": 1.0} for batch in (16, 16, 64, 256)]
    critical_batch = {"value": value, "lower": 100.0, "upper": None if at_least else 900.0}
    point = {"updates": 80, "samples": 1280, "start_loss": 2.0, "branches": ways, "critical_batch": critical_batch, "power": 0.5}
    whole = {"task": task, "global_batch": 16, "samples": 1024, "tolerance": 0.01, "cost": 0.2, "confidence": 0.95, "seconds": None}
    return {**whole, "points": [{**point, "gain": 0.5, "largest_held": 64}], "sentences": ["at update 80: about 500"], "notes": ["a doubt"]}


def steps():
    """Three regimes with knees at 64 and 256; the largest batch reached the target once, at an edge of the rates."""
    space = (Range("optimizer.lr", 0.01, 1.0),)

    def point(batch, updates, number=4):
        best = [SearchTrial({"optimizer.lr": 0.02 * (batch / 16) ** 0.5}, i, "reached", updates + i, 0.91) for i in range(number)]
        rest = [
            SearchTrial({"optimizer.lr": 0.9}, 9, "stopped", 3 * updates, 0.8),
            SearchTrial({"optimizer.lr": 1.0}, 8, "diverged", 7, None),
        ]
        return SearchPoint(batch, (space,), (*best, *rest), 4 * updates)

    points = (point(16, 800), point(32, 400), point(64, 200), point(256, 100), point(1024, 100), point(65536, 100, number=1))
    return json.loads(json.dumps(StepsStudy("digits/mlp", "accuracy", 0.9, RECIPE, points).to_dict()))
