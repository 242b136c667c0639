"""Free field 8x8, m2 = 1, spectrum base set analytically, float64: ESS = 1 to 1e-10, log Z to 1e-8.

python -m benchmarks.free_field
"""

from latticeflow.flows import Flow, Spectrum
from latticeflow.targets import FreeField

from .common import one_thread, quality


def main() -> None:
    one_thread()
    free = FreeField(shape=(8, 8), m2=1.0)
    flow = Flow(Spectrum(free.lattice), []).double()
    flow.base.set_free_field(free.m2)
    s = quality(flow, free)
    print(
        f"1 - ESS = {1 - s.ess:.1e} at N = {s.n:,}; log Z - exact (-11.6228852573) = {s.log_z + 11.6228852573:.1e}"
    )


if __name__ == "__main__":
    main()
