"""The README's Python is run as it stands, and its numbers are checked against the known answer."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_snippet_runs_and_is_right():
    text = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    ess = float(re.search(r"ESS ([\d.]+)", out)[1])
    assert ess > 0.9
    estimates = re.findall(r"^(?:flow|HMC) +([\d.]+)\((\d+)\), tau_int", out, flags=re.M)
    assert len(estimates) == 2
    for value, digits in estimates:
        error = int(digits) * 10.0 ** -len(value.split(".")[1])
        assert abs(float(value) - 0.7446) < 4 * error < 0.03


def test_the_readme_names_real_files():
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"configs/\w+\.toml|docs/\w+\.md", text):
        assert (ROOT / name).is_file(), name
    for module in re.findall(r"python -m (benchmarks\.\w+)", text):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
