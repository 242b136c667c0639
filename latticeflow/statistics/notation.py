"""How a number with its error is written."""

import numpy as np


def bracket(value: float, error: float) -> str:
    """The usual notation, two digits of the error: 0.74461(52), 64.1(1.2), 1230(140)."""
    if error == 0 or not np.isfinite([value, error]).all():
        return f"{value:.10g}({error:g})"
    decimals = 1 - int(np.floor(np.log10(float(f"{error:.1e}"))))
    if decimals > 9:
        return f"{value:.6g}({error:.1e})"
    if decimals <= 0:
        return f"{round(value, decimals):.0f}({round(error, decimals):.0f})"
    inside = f"{error:.1f}" if decimals == 1 else f"{error * 10**decimals:.0f}"
    return f"{value:.{decimals}f}({inside})"
