"""What is said of an ensemble in a few lines, after drawing and by `info`."""

from collections.abc import Iterator

import numpy as np

from ..errors import StatisticsError
from ..store import Ensemble


def summary_lines(ensemble: Ensemble) -> Iterator[str]:
    """Draws and cost; then acceptance, ESS and log Z of a corrected chain, or HMC's own acceptance."""
    keys = ensemble.blocks
    seconds, start = ensemble.seconds, ensemble.start_seconds
    cost = f"{seconds:.2f} rank-seconds" + (f" and {start:.2f} of thermalisation" if start else "")
    yield f"{ensemble.draws:,} draws in {len(keys)} blocks, {cost}"
    if not keys:
        return
    if ensemble.weighted:
        yield from _corrected(ensemble)
    else:
        yield from _chains(ensemble)


def _corrected(ensemble: Ensemble) -> Iterator[str]:
    try:
        found = ensemble.summary()
    except StatisticsError as error:
        yield f"no summary of the weights: {error}"
        return
    weights = found.weights
    yield f"Metropolis acceptance {found.acceptance:.4f}, longest run of rejections {found.longest}"
    yield f"{weights}, largest weight's share {weights.largest_share:.2e}"
    yield f"log Z = {weights.log_z:.5f} +- {weights.log_z_error:.5f}"


def _chains(ensemble: Ensemble) -> Iterator[str]:
    keys = ensemble.blocks
    names = [name for name in ensemble.names(*keys[0]) if name.startswith("info/")]
    info: dict[str, dict[int, list[np.ndarray]]] = {name[5:]: {} for name in names}
    for stream, block in keys:
        for name, values in (ensemble.read(stream, block, *names) if names else {}).items():
            info[name[5:]].setdefault(stream, []).append(values)
    series = {name: {s: np.concatenate(v) for s, v in streams.items()} for name, streams in info.items()}
    if "acceptance" in series:
        mean = np.mean([v.mean() for v in series["acceptance"].values()])
        line = f"acceptance {mean:.4f} over {len(series['acceptance'])} streams of {ensemble.chains} chains"
        if "smallest_acceptance" in series:  # of any chain, accumulated since tuning
            smallest = min(v[-1] for v in series["smallest_acceptance"].values())
            line += f", smallest of any chain {smallest:.4f}"
        yield line
    if "exp_minus_dh" in series:
        means = np.array([v.mean() for v in series["exp_minus_dh"].values()])
        error = f" +- {means.std(ddof=1) / np.sqrt(len(means)):.5f}" if len(means) > 1 else ""
        yield f"<exp(-dH)> = {means.mean():.5f}{error} (1 if correct)"
