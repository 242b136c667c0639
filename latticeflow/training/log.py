"""The training log: append-only JSON lines, one object a line."""

import json
from pathlib import Path

from ..files import writing


def append(path: Path, record: dict) -> None:
    """Append one record; if a killed job left half a line, begin a new one. Raises `WriteFailed`."""
    with writing(path):
        torn = path.exists() and path.stat().st_size and path.read_bytes()[-1:] != b"\n"
        with open(path, "a", encoding="utf-8") as handle:
            handle.write(("\n" if torn else "") + json.dumps(record) + "\n")


def read(path: Path) -> list[dict]:
    """All records in order of step; a step that was run again after a resume counts once, as the later one.

    Half a line, left by a kill, is passed over.
    """
    records: dict[int, dict] = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        records[record["step"]] = record
    return [records[step] for step in sorted(records)]
