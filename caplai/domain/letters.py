"""The form of an e-mail: the same blocks in two languages, as plain text and as simple HTML.

Nothing remote stands in the HTML (no picture, no font, no counter), so opening a mail tells nobody that it was opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, slots=True, repr=False)
class Code:
    """Digits to be typed, on a line of their own."""

    digits: str


@dataclass(frozen=True, slots=True, repr=False)
class Link:
    """Where to go on, with what is there in words."""

    label: str
    url: str


_STYLE = "font: 18px/1.5 sans-serif; max-width: 36em; margin: auto; overflow-wrap: anywhere"

Block = str | Code | Link


@dataclass(frozen=True, slots=True, repr=False)
class Part:
    """A mail in one language: what stands in the list of mails, and its paragraphs."""

    subject: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True, repr=False)
class Letter:
    """A mail as it is sent, in plain text and in HTML."""

    subject: str
    text: str
    html: str


def letter(parts: Sequence[tuple[str, Part]]) -> Letter:
    """Put the parts (language, text) together in their order. The subject is that of all of them, each once."""
    subjects = list(dict.fromkeys(part.subject for _, part in parts))
    text = "\n\n-- \n\n".join("\n\n".join(map(_plain, part.blocks)) for _, part in parts)
    html = "<hr>".join(
        f'<div lang="{language}">{"".join(map(_html, part.blocks))}</div>' for language, part in parts
    )
    page = (
        f'<!doctype html><html lang="{parts[0][0]}"><head><meta charset="utf-8"><title>{escape(subjects[0])}</title>'
        f'</head><body style="{_STYLE}">{html}</body></html>'
    )
    return Letter(" / ".join(subjects), text + "\n", page)


def _plain(block: Block) -> str:
    match block:
        case Code(digits):
            return f"    {digits}"
        case Link(label, url):
            return f"{label}:\n{url}"
    return block


def _html(block: Block) -> str:
    match block:
        case Code(digits):
            return f'<p style="font-size: 32px; letter-spacing: 4px"><b>{escape(digits)}</b></p>'
        case Link(label, url):
            return f'<p><a href="{escape(url)}">{escape(label)}</a><br>{escape(url)}</p>'
    return f"<p>{escape(block)}</p>"
