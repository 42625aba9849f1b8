"""Two workers under Ray Train: it sets torchrun's environment and the process group up, and `fit` takes part in it.

python examples/cluster/ray_train.py                  (needs `pip install "ray[train]"`)
"""

import sys

from ray.train import RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer


def train(config):
    import bigbatch

    recipe = bigbatch.plan(bigbatch.Recipe.named("digits/mlp"), global_batch=config["global_batch"], rule="sqrt").recipe
    result = bigbatch.fit("digits/mlp", recipe, out=config["out"], quiet=True)
    if get_context().get_world_rank() == 0:
        print(f"test accuracy {result.test_score:.3f} after {result.updates} updates of {get_context().get_world_size()} workers")


if __name__ == "__main__":
    out = sys.argv[1] if len(sys.argv) > 1 else "runs/ray-train"  # a folder that all nodes share
    settings = {"global_batch": 128, "out": f"{out}/digits"}
    workers = ScalingConfig(num_workers=2, use_gpu=False)
    TorchTrainer(train, train_loop_config=settings, scaling_config=workers, run_config=RunConfig(storage_path=out)).fit()
