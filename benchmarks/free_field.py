"""Free field 8x8, m2 = 1, spectrum base set analytically, float64: ESS = 1 to 1e-10, log Z to 1e-8.

python -m benchmarks.free_field
"""

from latticeflow.flows import Flow, Spectrum
from latticeflow.targets import FreeField

from .common import Bars, one_thread, quality

EXACT = -11.6228852573  # 1/2 sum_k log(pi / (khat^2 + m2))


def main() -> None:
    one_thread()
    free = FreeField(shape=(8, 8), m2=1.0)
    flow = Flow(Spectrum(free.lattice), []).double()
    flow.base.set_free_field(free.m2)
    s = quality(flow, free)
    bars = Bars()
    bars.at_most(f"1 - ESS at N = {s.n:,}", 1 - s.ess, 1e-10)
    bars.at_most(f"|log Z - exact ({EXACT})|", abs(s.log_z - EXACT), 1e-8)
    bars.end()


if __name__ == "__main__":
    main()
