"""The plot of a model's training."""

import numpy as np
from matplotlib.figure import Figure

from .plots import COLOURS, DASHES, MARKERS, styled


@styled
def losses(log: list[dict]) -> Figure:
    """The loss of each player against the step, and that on held-out configurations, a panel for each player.

    Where none are held out (`trained_on`), that is one of configurations that were trained on, and is called so.
    """
    held_out = "on training chains" if log[-1].get("trained_on") else "on held-out chains"
    names = [name for name in log[-1] if name.startswith("loss ")] or ["held_out"]
    figure = Figure(figsize=(6.4, 1.2 + 2.4 * len(names)), layout="constrained")
    for axes, name in zip(figure.subplots(len(names), sharex=True, squeeze=False)[:, 0], names):
        shown = [name] + ["held_out"] * ("held_out" in log[-1] and name == "loss model")
        for i, key in enumerate(shown):
            points = [(line["step"], line[key]) for line in log if key in line]
            step, loss = np.array(points).T
            label = held_out if key == "held_out" else "in training"
            axes.plot(step, loss, DASHES[i], color=COLOURS[i], marker=MARKERS[i], markersize=3, label=label)
        axes.set_ylabel(name)
        axes.legend()
    axes.set_xlabel("optimiser step")
    return figure
