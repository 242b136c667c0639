"""Rules of the house that can be checked by reading the source."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import latticeflow

ROOT = Path(latticeflow.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# docs/architecture.md, from left to right; names on one line may not import one another's right-hand lines
LAYERS = [
    {
        "errors",
        "files",
        "random",
        "spec",
        "threads",
        "compiling",
        "lattice",
        "statistics",
        "console",
        "precision",
    },
    {"groups", "exact"},
    {"targets"},
    {"collider"},
    {"observables"},
    {"transforms"},
    {"flows"},
    {"samplers", "baselines"},
    {"correction"},
    {"store"},
    {"training"},
    {"config", "run"},
    {"pretrained"},
    {"production"},
    {"analysis"},
    {"studies"},
    {"cli", "__main__", "__init__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imported(path: Path) -> set[str]:
    """Top-level modules of the package that a file imports, also inside functions."""
    package = path.relative_to(ROOT).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            names = [n.name for n in node.names] if base == [""] else [base[0]]
            found |= {n for n in names if n in RANK}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("latticeflow"):
            found.add([*node.module.split("."), ""][1])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_layers(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert own in RANK, f"{own} has no place in docs/architecture.md"
    wrong = {name for name in imported(path) if RANK[name] > RANK[own]}
    assert not wrong, f"{path.name} imports {wrong}, which stand to its right"


GLOBAL_STATE = re.compile(
    r"np\.random\.(seed|rand|randn|normal|uniform|choice|random)\b|numpy\.random\.seed|torch\.(manual_seed|seed|rand|randn|randint|"
    r"randperm|bernoulli|normal)\(|random\.seed|_like\(.*rand|\.(normal|uniform|exponential|cauchy|bernoulli)_\(|pickle|torch\.(load|save)\("
)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_global_random_state_and_no_pickle(path):
    code = "\n".join(ast.unparse(n) for n in ast.parse(path.read_text()).body)
    code = re.sub(r'""".*?"""|\'[^\'\n]*\'|"[^"\n]*"', "", code, flags=re.S)
    assert not GLOBAL_STATE.search(code), GLOBAL_STATE.search(code)


def test_the_grep_finds_what_it_should():
    for bad in ("torch.manual_seed(1)", "np.random.normal(0, 1)", "x.normal_()", "torch.load(path)"):
        assert GLOBAL_STATE.search(bad)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 400


def test_import_starts_no_mpi():
    code = "import sys, latticeflow as lf; [getattr(lf, n) for n in lf.__all__]; sys.exit('mpi4py.MPI' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_help_loads_no_torch():
    code = "import sys, latticeflow.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_assert_in_the_package():
    for path in FILES:
        assert not any(isinstance(n, ast.Assert) for n in ast.walk(ast.parse(path.read_text()))), path


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name == "studies"], ids=lambda p: p.name)
def test_studies_stand_on_the_public_interface(path):
    for node in ast.walk(ast.parse(path.read_text())):
        absolute = node.module if isinstance(node, ast.ImportFrom) and not node.level else None
        names = [n.name for n in node.names] if isinstance(node, ast.Import) else [absolute or ""]
        assert not any(name.split(".")[0] == "latticeflow" for name in names), (
            f"{path.name}: write `from .. import`"
        )
        if isinstance(node, ast.ImportFrom) and node.level == 2 and node.module != "errors":
            assert node.module is None, f"{path.name} looks into latticeflow.{node.module}"
            assert {n.name for n in node.names} <= set(latticeflow.__all__)
