"""Sections of tables and pictures -> the text of the report: HTML, Markdown and CSV.

The HTML page loads nothing, so that it opens from a disk by a double click and can be sent as one file.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.paper import Paper
from pipelines.tables import Table

TEMPLATE = Path(__file__).with_name("report.html.jinja")


class Picture(NamedTuple):
    """A drawn figure: its files by suffix, perhaps its data among them as .csv, and the words around it."""

    name: str
    title: str
    caption: str
    statement: str  # what data the accuracies are of; empty where there are none
    files: Mapping[str, bytes]

    @property
    def svg_base64(self) -> str:
        return base64.b64encode(self.files[".svg"]).decode()


class Section(NamedTuple):
    """A chapter of the report, in order."""

    title: str
    items: Sequence[Picture | Table]

    @property
    def pictures(self) -> list[Picture]:
        return [item for item in self.items if isinstance(item, Picture)]

    @property
    def tables(self) -> list[Table]:
        return [item for item in self.items if isinstance(item, Table)]


def html_page(paper: Paper, scale: str, summary: Mapping[str, str], sections: Sequence[Section]) -> str:
    """The report as one page."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(TEMPLATE.read_text())
    return template.render(paper=paper, scale=scale, summary=summary, sections=sections)


def markdown_page(paper: Paper, scale: str, summary: Mapping[str, str], sections: Sequence[Section]) -> str:
    """The same tables as GitHub shows them, the pictures by their file names."""
    blocks = [f"# MobileNets, rerun at {scale} scale", f"The paper: [{paper.title}]({paper.url}), {paper.citation}."]
    blocks.append("\n".join(f"- {term}: {value}" for term, value in summary.items()))
    blocks.append("\n".join(f"- {note.strip()}" for note in paper.notes))
    for section in sections:
        blocks.append(f"## {section.title}")
        for item in section.items:
            blocks += [f"### {item.title}", *_bold(item.statement)]
            blocks += _table_blocks(item) if isinstance(item, Table) else _picture_blocks(item)
    return "\n\n".join(blocks) + "\n"


def _picture_blocks(picture: Picture) -> list[str]:
    return [picture.caption, f"![{picture.title}]({picture.name}.png)"]


def _table_blocks(table: Table) -> list[str]:
    notes = [
        *(f"- In our results: {comparison}" for comparison in table.comparisons),
        *(f"- As printed: {comparison}" for comparison in table.printed_comparisons),
        *(f"- Slip of the paper: {slip}" for slip in table.slips),
        *(f"- {note}" for note in table.notes),
    ]
    return [_markdown_table(table), *(["\n".join(notes)] if notes else [])]


def _bold(statement: str) -> list[str]:
    return [f"**{statement}**"] if statement else []


def _markdown_table(table: Table) -> str:
    begins = {0, *table.starts}  # a group is named once, in its first column
    header = [
        ": ".join(part for part in (group if i in begins else "", column) if part)
        for i, (group, column) in enumerate(table.header)
    ]
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *([cell.text for cell in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def csv_text(records: Sequence[Mapping[str, Any]]) -> str:
    """Records as CSV with a header; nothing at all for a value that is null."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()
