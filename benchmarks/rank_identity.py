"""Ensembles from 1, 2 and 3 ranks: every data set of every file, byte by byte.

python -m benchmarks.rank_identity
"""

import tempfile
from pathlib import Path

from tests.jobs import contents

from .common import Bars, one_thread
from .production import DRAWS, fresh, launcher, make_run, sample


def main() -> None:
    one_thread()
    mpirun = launcher()
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "run")
        found = {}
        for n in (1, 2, 3):
            copy = fresh(run, f"ranks{n}")
            for sampler in DRAWS:
                sample(mpirun, n, copy, sampler)
            found[n] = contents(copy)
            arrays = sum(len(file) for file in found[n].values() if isinstance(file, dict))
            same = "reference" if n == 1 else "identical" if found[n] == found[1] else "DIFFERENT"
            print(f"{n} rank(s): {len(found[n])} files, {arrays} data sets, {same}", flush=True)
    bars = Bars()
    bars.at_least("rank numbers with the bytes of one rank", sum(found[n] == found[1] for n in found), 3)
    bars.end()


if __name__ == "__main__":
    main()
