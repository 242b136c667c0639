"""The run folder: a deck, weights, a training log and an ensemble for each sampler that drew from its target."""

from pathlib import Path

from .config import Deck
from .errors import InputError
from .files import write_text
from .spec import differences


class Run:
    """`path/deck.toml`, `path/weights/`, `path/train.jsonl`, `path/ensembles/SAMPLER/`."""

    def __init__(self, path: Path, deck: Deck):
        self.path, self.deck = Path(path), deck

    @property
    def weights(self) -> Path:
        return self.path / "weights"

    @property
    def log(self) -> Path:
        return self.path / "train.jsonl"

    def ensemble(self, sampler: str) -> Path:
        return self.path / "ensembles" / sampler

    @classmethod
    def create(cls, deck: Deck, path: Path | str | None = None) -> "Run":
        """A new run folder (default `runs/NAME`). Raises `InputError` if it exists and is not empty."""
        path = Path("runs") / deck.name if path is None else Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(
                f"run folder {path} exists; nothing was changed. Go on with --resume, or choose another "
                "folder with --run, or move it away"
            )
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / "deck.toml", deck.toml())
        return cls(path, deck)

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """An existing run. Raises `InputError` where `path` holds no deck.toml."""
        path = Path(path)
        if not (path / "deck.toml").is_file():
            raise InputError(f"{path} is not a run folder: it has no deck.toml")
        return cls(path, Deck.read(path / "deck.toml"))

    def require_same(self, deck: Deck) -> None:
        """Raise `InputError` naming the keys in which `deck` differs from the deck this run was made with."""
        changed = differences(self.deck.table(), deck.table())
        if changed:
            raise InputError(
                f"the deck differs from the one in {self.path}: {'; '.join(changed)}. "
                "Results would mix two settings; use another run folder"
            )
