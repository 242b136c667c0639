"""What the benchmarks share: bars, training for a number of seconds, evaluation, timing."""

import argparse
import copy
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from latticeflow.flows.spec import FlowSpec
from latticeflow.random import Purpose, stream
from latticeflow.samplers import FlowSampler
from latticeflow.samplers.flow import fastest_batch
from latticeflow.statistics.weights import WeightSummary
from latticeflow.targets import LatticeTarget
from latticeflow.training import TrainSettings, evaluate, train

SOAP = {"optimizer": "soap", "lr": 5e-3, "warmup": 50}  # settings of the split flow's trainings


def train_for(
    spec: FlowSpec, target: LatticeTarget, seconds: float, seed: int = 1, within: float = 0.15, **settings
):
    """Train `spec` for about `seconds`: a probe of 40 steps measures the rate, which fixes the number of steps.

    Schedules count steps, so the probe's only effect on the result is that number. A training whose time was off by more
    than the fraction `within` is done again with the steps of its own rate, up to three times. Returns flow, steps and
    the seconds that training took.
    """
    common = {"evaluate_every": 10**9, "evaluate_draws": 1024, **settings}

    def run(steps: int):
        flow = spec.build_for(target, seed)
        records = []
        train(flow, target, TrainSettings(steps=steps, **common), seed=seed, report=records.append)
        return flow, records[-1]["seconds"]

    run(5)
    rate = 40 / run(40)[1]
    for _ in range(3):
        steps = max(1, int(rate * seconds))
        flow, spent = run(steps)
        if abs(spent / seconds - 1) < within:
            break
        rate = steps / spent
    return flow, steps, spent


def quality(flow, target, draws: int = 65536, seed: int = 2) -> WeightSummary:
    return evaluate(flow, target, draws, seed=seed)


def speed(samplers: list[FlowSampler], draws: int = 16384, repeats: int = 5) -> list[float]:
    """Median draws per second of each, measured in turn so that a noisy machine hits all alike."""
    rates: list[list[float]] = [[] for _ in samplers]
    for repeat in range(repeats + 1):
        for rate, sampler in zip(rates, samplers):
            start = time.perf_counter()
            sampler.draw(None, draws, stream(3, Purpose.DRAW, repeat))
            rate.append(draws / (time.perf_counter() - start))
    return [float(np.median(rate[1:])) for rate in rates]


def at_fastest_batch(target: LatticeTarget, flow) -> FlowSampler:
    sampler = FlowSampler(target, flow)
    sampler.batch = fastest_batch(sampler, 4096)
    return sampler


def fastest_sampler(target: LatticeTarget, flow) -> FlowSampler:
    """At the fastest batch, and compiled where that is faster."""
    plain = at_fastest_batch(target, flow)
    compiled = FlowSampler(target, copy.deepcopy(flow), plain.batch, compile=True)
    compiled.prepare()
    slow, fast = speed([plain, compiled], draws=4096, repeats=3)
    return compiled if fast > slow else plain


def named(sampler: FlowSampler) -> str:
    return f"batch {sampler.batch}{', compiled' if sampler.compiled else ''}"


def one_thread() -> None:
    torch.set_num_threads(1)


class Bars:
    """Figures beside their bars, printed as they come; `end` exits with 1 where one was missed."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def at_least(self, what: str, value: float, bar: float) -> None:
        self._say(what, value, f">= {bar:.10g}", value >= bar)

    def at_most(self, what: str, value: float, bar: float) -> None:
        self._say(what, value, f"<= {bar:.10g}", value <= bar)

    def _say(self, what: str, value: float, bar: str, met: bool) -> None:  # NaN meets no bar
        print(f"{what}: {value:.4g}, bar {bar}: {'met' if met else 'MISSED'}", flush=True)
        if not met:
            self.missed.append(what)

    def end(self) -> None:
        sys.exit(f"bars missed: {'; '.join(self.missed)}" if self.missed else 0)


def run_parts(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    parts: dict[str, Callable[[Bars, argparse.Namespace], None]],
) -> None:
    """Run those of `parts` that `args.parts` names, one thread each, and end with status 1 where a bar was missed."""
    if unknown := set(args.parts) - set(parts):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; known: {', '.join(parts)}")
    one_thread()
    bars = Bars()
    for name in args.parts:
        print(f"== {name}", flush=True)
        parts[name](bars, args)
    bars.end()
