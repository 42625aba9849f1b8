"""Gossip in a recipe: one section for its methods and topologies."""

from typing import Any, ClassVar, Literal

from torch import nn

from bigbatch.comm.gossip.d_psgd import DPSGD
from bigbatch.comm.gossip.decentlam import DecentLaM
from bigbatch.comm.gossip.dmsgd import DmSGD
from bigbatch.comm.gossip.gossip import Gossip
from bigbatch.comm.gossip.topology import topology
from bigbatch.comm.ranks import Ranks
from bigbatch.core.methods import COMMS
from bigbatch.recipe import Recipe
from bigbatch.recipe.sections import CommSection

METHODS: dict[str, type[Gossip]] = {"d_psgd": DPSGD, "dmsgd": DmSGD, "decentlam": DecentLaM}


class GossipSection(CommSection):
    """Workers take steps of their own and average their weights with their neighbours'."""

    local_steps: ClassVar[bool] = True

    kind: Literal["gossip"] = "gossip"
    method: Literal["d_psgd", "dmsgd", "decentlam"] = "d_psgd"
    topology: Literal[
        "ring", "torus", "complete", "star", "exponential", "one_peer_exponential", "symmetric_exponential", "random_match"
    ] = "ring"

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse what DecentLaM is not made for."""
        if self.method != "decentlam":
            return
        name, nesterov = recipe.optimizer.name, recipe.get("optimizer.nesterov")
        if name != "sgd" or nesterov:
            has = "nesterov = true" if name == "sgd" else f'name = "{name}"'
            raise ValueError(
                f'comm.method = "decentlam" with optimizer.{has}: is made for heavy-ball momentum; set optimizer.name = "sgd" and '
                'optimizer.nesterov = false, or comm.method = "d_psgd"'
            )
        if self.topology in ("exponential", "one_peer_exponential"):
            raise ValueError(
                f'comm.topology = "{self.topology}": is directed, and DecentLaM needs symmetric weights; choose "ring", "torus" or '
                '"symmetric_exponential"'
            )


@COMMS.register("gossip", GossipSection)
def build(c: GossipSection, model: nn.Module, ranks: Ranks, _: Any) -> Gossip:
    """How the recipe's workers go together."""
    return METHODS[c.method](model, ranks, topology=topology(c.topology, ranks.world_size))
