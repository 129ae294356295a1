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
    """A drawn figure: its files by suffix, and the words around it."""

    name: str
    title: str
    caption: str
    statement: str  # what data the accuracies are of; empty where there are none
    files: Mapping[str, bytes]

    @property
    def svg_base64(self) -> str:
        return base64.b64encode(self.files[".svg"]).decode()


class Section(NamedTuple):
    """A chapter of the report."""

    title: str
    pictures: Sequence[Picture]
    tables: Sequence[Table]


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
        for picture in section.pictures:
            blocks += [f"### {picture.title}", *_bold(picture.statement), picture.caption]
            blocks.append(f"![{picture.title}]({picture.name}.png)")
        for table in section.tables:
            blocks += [f"### {table.title}", *_bold(table.statement), _markdown_table(table)]
            notes = [f"- Slip of the paper: {slip}" for slip in table.slips] + [f"- {note}" for note in table.notes]
            blocks += ["\n".join(notes)] if notes else []
    return "\n\n".join(blocks) + "\n"


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
