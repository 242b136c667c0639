"""What is said of an ensemble in a few lines, after drawing and by `info`."""

from collections.abc import Iterator
from typing import cast

import numpy as np

from ..collider import MatrixElement
from ..errors import StatisticsError, WriteFailed
from ..statistics import Integration, bracket, integrate, mean
from ..store import Ensemble
from ..targets import Target, targets
from ..targets.hypercube import Hypercube

_FLAT = 20_000  # points of which survival is counted


def summary_lines(ensemble: Ensemble) -> Iterator[str]:
    """Draws and cost; then acceptance, ESS and log Z of a corrected chain, or HMC's own acceptance.

    Of an integrand on the unit cube also Z, in its unit, and what its weights are like.
    """
    keys = ensemble.blocks
    # first: this builds the chain where it is missing, and the chain's file knows the seconds of all blocks
    corrected = list(_corrected(ensemble)) if ensemble.weighted and keys else []
    seconds, start = ensemble.seconds, ensemble.start_seconds
    cost = f"{seconds:.2f} rank-seconds" + (f" and {start:.2f} of thermalisation" if start else "")
    yield f"{ensemble.draws:,} draws in {len(keys)} blocks, {cost}"
    yield from corrected
    if not ensemble.exact:
        yield from _approximate(ensemble)
    elif keys and not ensemble.weighted:
        yield from _chains(ensemble)


def _corrected(ensemble: Ensemble) -> Iterator[str]:
    try:
        found = ensemble.summary()
    except (StatisticsError, WriteFailed) as error:
        yield f"no summary of the weights: {error}"
        return
    weights, chains = found.weights, len(ensemble.tracks)
    over = f" over {chains} chains, one a stream" if chains > 1 else ""
    yield f"Metropolis acceptance {found.acceptance:.4f}{over}, longest run of rejections {found.longest}"
    yield f"{weights}, largest weight's share {weights.largest_share:.2e}"
    solver = ensemble.density_error
    also = f", and up to {solver:.2g} of the solver in steps" if solver else ""
    yield f"log Z = {weights.log_z:.5f} +- {weights.log_z_error:.5f}{also}"
    if issubclass(targets.find(ensemble.target["kind"]), Hypercube):
        yield from _integral(ensemble)


def integral_name(target: Hypercube) -> str:
    """What Z is: "sigma" in pb, "Gamma" in GeV, else "Z"."""
    return {"pb": "sigma", "GeV": "Gamma"}.get(target.unit, "Z")


def weight_line(found: Integration) -> str:
    """Spread of the weights, share of draws that have one, and unweighting."""
    weights, kept = found.weights, found.unweighting
    line = f"standard deviation of the weights {bracket(weights.deviation, weights.deviation_error)} of their mean"
    if kept is None:
        return f"{line}; no unweighting: {found.problem}"
    inside = bracket(100 * kept.survival, 100 * kept.survival_error) if kept.survival < 1 else "100"
    return (
        f"{line}; {inside} % of draws have a weight; unweighting efficiency "
        f"{bracket(kept.efficiency, kept.efficiency_error)} at the {100 * kept.quantile:g} % quantile, with "
        f"{100 * kept.overweight:.2g} % of the weight above it"
    )


def survival_lines(target: Target) -> list[str]:
    """What the cuts leave of flat points; nothing where there are no cuts."""
    if not isinstance(target, MatrixElement) or not target.cuts.bounds:
        return []
    share, error = target.survival(_FLAT)
    cuts = ", ".join(f"{name} = {bound:g}" for name, bound in target.cuts.bounds.items())
    return [f"survival of the cuts {cuts}: {bracket(100 * share, 100 * error)} % of {_FLAT:,} flat points"]


def _integral(ensemble: Ensemble) -> Iterator[str]:
    target = cast(Hypercube, targets.parse(ensemble.target))
    found = integrate((data["log_w"] for data in ensemble.iterate("log_w")), ensemble.draws)
    value = bracket(found.weights.z, found.weights.z_error)
    yield f"{integral_name(target)} = {value} {target.unit}".rstrip()
    yield weight_line(found)
    yield from survival_lines(target)


def _approximate(ensemble: Ensemble) -> Iterator[str]:
    yield "approximate: draws of a model that was learned from data; no exact density, nothing to correct them by"
    error = ensemble.info("log_w_error")
    if error is not None:
        yield (
            f"log w estimated with {ensemble.settings['density_samples']} importance samples a draw, root mean square error "
            f"{np.sqrt(np.mean(error**2)):.3g}: for study only"
        )


def _chains(ensemble: Ensemble) -> Iterator[str]:
    recorded = ensemble.infos("acceptance", "smallest_acceptance", "flow_acceptance", "exp_minus_dh")
    acceptance = recorded.get("acceptance")
    if acceptance is not None:
        line = (
            f"acceptance {acceptance.mean():.4f} over {len(acceptance)} streams of {ensemble.chains} chains"
        )
        smallest = recorded.get("smallest_acceptance")
        if smallest is not None:  # of any chain, accumulated since tuning
            line += f", smallest of any chain {smallest[:, -1].min():.4f}"
        yield line
    flow = recorded.get("flow_acceptance")
    if flow is not None:
        yield f"acceptance of the flow's proposals {flow.mean():.4f}"
    exp_minus_dh = recorded.get("exp_minus_dh")
    if exp_minus_dh is not None:
        try:
            found = mean(exp_minus_dh)
            yield f"<exp(-dH)> = {bracket(found.value, found.error)} (1 if correct)"
        except StatisticsError as error:
            yield f"<exp(-dH)> = {exp_minus_dh.mean():.5f}, without an error: {error}"
    if ensemble.settings.get("check_reversibility"):
        streams = {stream: block for stream, block in ensemble.blocks}  # the last block of each
        states = [ensemble.state(*key) for key in streams.items()]
        dx, dh = (max(float(s[f"reversibility_{name}"]) for s in states) for name in ("dx", "dh"))
        yield f"reversibility, worst of {len(states)} streams: |x - x_back| = {dx:.1e}, |H - H_back| = {dh:.1e}"
