"""Flow settings and their registry: what `[flow]` in a deck may say."""

from typing import ClassVar

from ..lattice import Lattice
from ..spec import Registry, Spec
from ..targets import LatticeTarget, Target


class FlowSpec(Spec):
    """Settings of a flow; `build(lattice, seed)` makes the torch module, with weights drawn from `seed`."""

    kind: ClassVar[str]
    on: ClassVar[type[Target]] = LatticeTarget  # the kind of target that it can be of

    def build(self, lattice: Lattice, seed: int):
        raise NotImplementedError

    def build_for(self, target: LatticeTarget, seed: int):
        """The flow for one target; most know of its lattice only."""
        return self.build(target.lattice, seed)


flows: Registry[FlowSpec] = Registry("flow")
