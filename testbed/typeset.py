"""A table's blocks as text: for a terminal, and as Markdown. Pure; text that came from files is made harmless here."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TextIO

from testbed.table import Block, Table


def wants_colour(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """https://no-color.org: any non-empty NO_COLOR turns colour off."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


_NARROWEST = 12
"""Five planes stand side by side on 100 columns, seven on 120."""
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def mark(note: int | None) -> str:
    return "" if note is None else str(note).translate(_SUPERSCRIPT)


def as_text(table: Table, *, width: int = 110, colour: bool = False) -> str:
    """For a terminal: no line is longer than `width`, unless a single word is."""
    parts = [_block_text(piece, width, colour) for block in table.blocks for piece in _pieces(block, width)]
    notes = [
        textwrap.fill(f"{mark(n)} {clean(text)}", width, subsequent_indent="  ")
        for n, text in enumerate(table.notes, 1)
    ]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])]) + "\n"


def _pieces(block: Block, width: int) -> list[Block]:
    """A block too wide is split by columns, the first repeated."""
    widths = _natural_widths(block)
    if not block.numeric:  # words can be wrapped, down to a width that still reads
        widths = [widths[0], *(min(w, _NARROWEST) for w in widths[1:])]
    groups: list[list[int]] = [[]]
    for column in range(1, len(block.head)):
        if groups[-1] and widths[0] + sum(widths[c] + 2 for c in [*groups[-1], column]) > width:
            groups.append([])
        groups[-1].append(column)
    titles = [block.title] + [f"{block.title} (continued)"] * (len(groups) - 1)
    return [
        Block(
            title=title,
            numeric=block.numeric,
            head=tuple(block.head[c] for c in (0, *group)),
            rows=tuple(tuple(row[c] for c in (0, *group)) for row in block.rows),
        )
        for title, group in zip(titles, groups, strict=True)
    ]


def _natural_widths(block: Block) -> list[int]:
    return [
        max(
            [
                *(len(part) for part in _head_lines(h)),
                *(len(clean(t)) + len(mark(r[c].note)) for r in block.rows for t in r[c].lines),
            ]
        )
        for c, h in enumerate(block.head)
    ]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width) or [""]


def _head_lines(text: str) -> list[str]:
    """`group: column` stands on two lines, and so does a plane with options."""
    return re.split(r"(?<=:) ?(?=\S)", clean(text))


def _block_text(block: Block, width: int, colour: bool) -> str:
    widths = _natural_widths(block)
    if not block.numeric and len(widths) > 1:
        share = max(_NARROWEST, (width - widths[0]) // (len(widths) - 1) - 2)
        widths = [widths[0], *(min(w, share) for w in widths[1:])]
    bold, red, dim, off = ("\x1b[1m", "\x1b[31m", "\x1b[2m", "\x1b[0m") if colour else ("",) * 4

    def line(texts: Sequence[str], tones: Sequence[str]) -> str:
        out = []
        for c, text in enumerate(texts):
            padded = text.rjust(widths[c]) if block.numeric and c else text.ljust(widths[c])
            start = {"bad": red, "weak": dim, "bold": bold}.get(tones[c], "")
            out.append(f"{start}{padded}{off}" if start else padded)
        return "  ".join(out).rstrip()

    heads = [
        [part for line in _head_lines(h) for part in _wrapped(line, w)] for h, w in zip(block.head, widths, strict=True)
    ]
    deep = max(map(len, heads))
    lines = [f"{bold}{block.title}{off}"]
    for level in range(deep):
        texts = [([""] * (deep - len(h)) + h)[level] for h in heads]
        lines.append(line(texts, ["bold"] * len(heads)))
    lines.append("─" * min(width, sum(widths) + 2 * (len(widths) - 1)))
    for row in block.rows:
        cells = []
        for c, cell in enumerate(row):
            texts = [clean(t) for t in cell.lines]
            texts[-1] += mark(cell.note)
            cells.append([w for t in texts for w in (textwrap.wrap(t, widths[c]) or [""])])
        for level in range(max(map(len, cells))):
            lines.append(line([t[level] if level < len(t) else "" for t in cells], [c.tone for c in row]))
    return "\n".join(lines)


def clean(text: str) -> str:
    """Without control characters: names come from files, and a terminal obeys escapes."""
    return "".join(ch if ch.isprintable() else " " for ch in text)


def as_markdown(table: Table, *, heading: str = "") -> str:
    parts = [f"# {_md(heading)}"] if heading else []
    for block in table.blocks:
        rule = ["---", *["---:" if block.numeric else "---"] * (len(block.head) - 1)]
        body = [
            [
                ("<br>".join(_md(t) for t in cell.lines)) + (f"<sup>{cell.note}</sup>" if cell.note else "")
                for cell in row
            ]
            for row in block.rows
        ]
        lines = [[_md(h) for h in block.head], rule, *body]
        parts.append(f"**{_md(block.title)}**\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in lines))
    if table.notes:
        parts.append("\n".join(f"{n}. {_md(text)}" for n, text in enumerate(table.notes, 1)))
    return "\n\n".join(parts) + "\n"


def _md(text: str) -> str:
    """As literal text inside a table cell of GitHub's Markdown."""
    text = clean(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", text)
