"""Which methods there are: a registry a family, which the methods' own files fill.

A file registers a method by one line above the function that builds it, and no other file names it:

    @OPTIMIZERS.register("lars", LARSSection)
    def build(o: LARSSection, model: nn.Module, _: Any) -> LARS:

A registry finds these lines by reading the files of its folder, and imports a file only when its method is asked for: a recipe costs the
imports of the methods that it names. Code outside of this package registers methods in the same way, before a recipe names them.

What `build` gets and gives, by family:

    OPTIMIZERS    section, model, process group (of workers with equal gradients, or None)     a torch.optim.Optimizer at its peak rate
    WARMUPS       section, recipe                                                              a schedule: clock to factor
    DECAYS        section, span (schedules/span.py)                                            a schedule: clock to factor
    BATCH_RULES   section, recipe, bounds (batching/decision.py; not checked)                  what sets the next batch
    COMMS         section, model, ranks, recipe                                                a bigbatch.comm.protocol.Comm
    COMPRESSIONS  section, seed, device                                                        a Compressor of bigbatch.comm.compression
    RULES         recipe, k; there is no section                                               changes besides the batch
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from bigbatch.core.checks import unknown

Build = TypeVar("Build", bound=Callable[..., Any])
PACKAGE = Path(__file__).parents[1]


class Method(NamedTuple):
    """One method of a family."""

    name: str
    section: Any  # class of the recipe's section that names it; None in a family without
    build: Callable[..., Any]


class Registry(Mapping[str, Method]):
    """The methods of one family, by name; `registry[name]` imports the method's file.

    Args:
        family: Name of the registry, as it stands in the line that registers a method.
        folder: Of the package, in which the family's files are.
        first: Names in the order in which they are listed; all others follow by the alphabet.

    >>> "lars" in OPTIMIZERS, [name for name in OPTIMIZERS][:3]
    (True, ['sgd', 'adam', 'adamw'])
    """

    def __init__(self, family: str, folder: str, *, first: str = "") -> None:
        self.family, self._folder, self._first = family, PACKAGE / folder, first.split()
        self._registered: dict[str, Method] = {}

    @cached_property
    def homes(self) -> dict[str, str]:
        """Name of each method of this package to the module that registers it.

        Raises:
            ValueError: If two files register the same name.
        """
        line, homes = re.compile(rf'^@{self.family}\.register\(\s*"(\w+)"', re.MULTILINE), dict[str, str]()
        for path in sorted(self._folder.rglob("*.py")):
            module = ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts))
            for name in line.findall(path.read_text(encoding="utf-8")):
                if name in homes:
                    raise ValueError(f"{self.family}: {name!r} is registered by {homes[name]} and by {module}; give one another name")
                homes[name] = module
        return homes

    def register(self, name: str, section: Any = None) -> Callable[[Build], Build]:
        """Register a method by the function that builds it.

        Args:
            name: By which recipes know it.
            section: Class of the recipe's section.

        Raises:
            ValueError: If another module has registered a method of this name.
        """

        def registered(build: Build) -> Build:
            known = self._registered.get(name)
            owner = self.homes.get(name, known.build.__module__ if known else build.__module__)
            if owner != build.__module__:
                raise ValueError(
                    f"{self.family}: {name!r} is registered by {owner} already; give the one of {build.__module__} another name"
                )
            self._registered[name] = Method(name, section, build)
            return build

        return registered

    def __getitem__(self, name: str) -> Method:
        """Import and return a method."""
        if name not in self._registered:
            if name not in self.homes:
                raise KeyError(unknown("method", name, self))
            import_module(self.homes[name])
        return self._registered[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is such a method; imports nothing."""
        return name in self._registered or name in self.homes

    def __iter__(self) -> Iterator[str]:
        """All names; imports nothing."""
        names = {*self.homes, *self._registered}
        yield from (name for name in self._first if name in names)
        yield from sorted(names.difference(self._first))

    def __len__(self) -> int:
        return len({*self.homes, *self._registered})


OPTIMIZERS = Registry("OPTIMIZERS", "optim", first="sgd adam adamw sgdp adamp lars lamb muon soap_muon")
WARMUPS = Registry("WARMUPS", "schedules", first="none gradual constant autowu")
DECAYS = Registry("DECAYS", "schedules", first="constant step polynomial cosine linear wsd")
BATCH_RULES = Registry(
    "BATCH_RULES",
    "batching",
    first="increase_batch adabatch seesaw schedule ramp late noise_scale norm_test inner_product_test cabs simigrad divebatch goodput absa "
    "adascale",
)
COMMS = Registry("COMMS", "comm", first="all_reduce local_sgd diloco muloco streaming_diloco noloco gossip fully_shard parameter_server")
COMPRESSIONS = Registry("COMPRESSIONS", "comm", first="fp16 bf16 powersgd top_k int8 int4 sparse_loco")
RULES = Registry("RULES", "scaling", first="none linear sqrt legw adamw sde timescale lars lamb adam adamp muon soap_muon regime")
