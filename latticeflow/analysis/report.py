"""Tables and the self-contained page of a comparison: no reference leaves the file."""

import base64
from dataclasses import dataclass, field
from html import escape
from string import Template

from rich.table import Table as RichTable


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column holds names, the others numbers."""

    title: str
    headings: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def rich(self) -> RichTable:
        table = RichTable(title=self.title, title_justify="left")
        for i, heading in enumerate(self.headings):
            table.add_column(heading, justify="right" if i else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def html(self) -> str:
        head = "".join(f"<th>{escape(cell)}</th>" for cell in self.headings)
        body = "\n".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows
        )
        notes = "".join(f'<p class="note">{escape(note)}</p>' for note in self.notes)
        return (
            f"<h2>{escape(self.title)}</h2>\n<div><table>\n<tr>{head}</tr>\n{body}\n</table></div>\n{notes}"
        )


_PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font-family: Georgia, "Times New Roman", serif; color: #1a1a1a; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; line-height: 1.45; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 0.5rem; }
.sub, .note, figcaption { color: #555; font-size: 0.9rem; }
.note { margin: 0.3rem 0; }
table { border-collapse: collapse; border-top: 1.5px solid; border-bottom: 1.5px solid; }
th, td { padding: 0.2rem 0.9rem; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th { border-bottom: 1px solid; font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
tr:nth-child(even) td { background: #f6f6f6; }
div { overflow-x: auto; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; }
pre { background: #f6f6f6; padding: 0.8rem; overflow-x: auto; font-size: 0.85rem; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="sub">$subtitle</p>
$tables
<h2>Plots</h2>
$figures
<h2>Deck</h2>
<pre>$deck</pre>
</body>
</html>
"""
)


def page(
    title: str, subtitle: str, tables: list[Table], plots: dict[str, tuple[bytes, str]], deck: str
) -> str:
    """The page as text. `plots`: PNG bytes and caption by name."""
    figures = "\n".join(
        f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for name, (png, caption) in plots.items()
    )
    return _PAGE.substitute(
        title=escape(title),
        subtitle=escape(subtitle),
        tables="\n".join(table.html() for table in tables),
        figures=figures,
        deck=escape(deck),
    )
