"""Prose out of one documentation file: HTML, manual pages, info and plain text.

A document becomes a list of blocks (paragraphs, headings, short listings), each one string.
Navigation, scripts, tables of contents and long listings are dropped here; what repeats between
documents is the corpus's business.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

MAX_LISTING_LINES = 12


def names(text: str) -> frozenset[str]:
    """A set of words."""
    return frozenset(text.split())


_BLOCK_TAGS = names(
    "p div section article h1 h2 h3 h4 h5 h6 li dt dd tr table ul ol dl blockquote pre title"
    " caption body html main item note para example"
)
_SKIPPED_TAGS = names(
    "script style nav head header footer form select button svg math noscript info"
)
_VOID_TAGS = names("area base br col embed hr img input link meta param source track wbr")
_SKIPPED_CLASSES = re.compile(
    r"\b(sphinxsidebar|related|navheader|navfooter|nav|navigation|toc|list-of-\w+|index|genindex"
    r"|footer|header|breadcrumb\w*|toctree-wrapper|headerlink|contents|menu|tocdir|nav_\w+"
    r"|highlight-\w+-linenos|top|sidebar|topnav|langsel|copyright)\b"
)
_SPACES = re.compile(r"[ \t\r\n\f\v\xa0]+")


def html_blocks(text: str) -> list[str]:
    """The blocks of an HTML or XML page, in order."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    reader.flush()
    return reader.blocks


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[str] = []
        self._pieces: list[str] = []
        self._skipped: list[str] = []  # open tags from the skipped one on
        self._listing = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID_TAGS:
            if tag == "br":
                self._pieces.append("\n" if self._listing else " ")
            return
        if self._skipped:
            self._skipped.append(tag)
            return
        names = " ".join(value or "" for key, value in attrs if key in ("class", "id", "role"))
        if tag in _SKIPPED_TAGS or (tag not in ("html", "body") and _SKIPPED_CLASSES.search(names)):
            self._skipped.append(tag)
            return
        if tag in _BLOCK_TAGS:
            self.flush()
            self._listing += tag == "pre"
        elif tag == "td":
            self._pieces.append(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "br":
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if self._skipped:
            # Pages leave out end tags: what is open inside an ended element ends with it.
            if tag in self._skipped:
                at = len(self._skipped) - 1 - self._skipped[::-1].index(tag)
                del self._skipped[at:]
            elif tag in ("body", "html"):
                self._skipped.clear()
            return
        if tag in _BLOCK_TAGS:
            self.flush()
            self._listing = max(0, self._listing - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self._pieces.append(data)

    def flush(self) -> None:
        """Ends the current block."""
        text = "".join(self._pieces)
        self._pieces.clear()
        block = listing(text) if self._listing else _SPACES.sub(" ", text).strip(" \u00b6")
        if block:
            self.blocks.append(block)


def listing(text: str) -> str:
    """A listing as it stands, or nothing if it is a long one."""
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    return "\n".join(lines) if len(lines) <= MAX_LISTING_LINES else ""


def text_blocks(text: str) -> list[str]:
    """Paragraphs of a plain or info file; lines are joined unless they look laid out."""
    blocks = []
    for part in re.split(r"\n[ \t]*\n|\x1f", text):
        lines = [line.strip() for line in part.splitlines() if line.strip()]
        if not lines or lines[0].startswith(("File: ", "Node: ", "Ref: ", "Tag Table")):
            continue
        if lines[0] == "* Menu:" or all(line.startswith("* ") for line in lines):
            continue
        if all(not any(char.isalnum() for char in line) for line in lines):
            continue
        blocks.append(" ".join(lines))
    return blocks


_ESCAPES = (
    (re.compile(r"\\f(?:\[[^]]*\]|\([A-Z]{2}|.)"), ""),
    (re.compile(r"\\s[-+]?\d"), ""),
    (re.compile(r"\\\((?:aq|cq|oq)|\\\[(?:aq|cq|oq)\]"), "'"),
    (re.compile(r"\\\((?:lq|rq|dq)|\\\[(?:lq|rq|dq)\]|\\\*\((?:lq|rq|L\"|R\")"), '"'),
    (re.compile(r"\\\((?:em|en)|\\\[(?:em|en)\]"), "-"),
    (re.compile(r"\\\(bu|\\\[bu\]"), "*"),
    (re.compile(r"\\\([A-Za-z0-9]{2}|\\\[[^]]*\]|\\\*\[[^]]*\]|\\\*\(..|\\\*."), ""),
    (re.compile(r"\\[&|^/,:%c]"), ""),
    (re.compile(r"\\-"), "-"),
    (re.compile(r"\\e|\\\\"), r"\\"),
    (re.compile(r"\\[ ~0]"), " "),
)
_PARAGRAPHS = names("PP LP P IP TP HP SH SS RS RE Pp Sh Ss It br sp TQ")
_FONTS = names("B I BR BI IB IR RB RI SM SB UR UE MT ME")


def man_blocks(text: str) -> list[str]:
    """Paragraphs of a manual page of the `man` macros; tables and listings are dropped."""
    blocks: list[str] = []
    words: list[str] = []
    ends: str | None = None  # the macro that ends what is being dropped

    def flush() -> None:
        block = _SPACES.sub(" ", " ".join(words)).strip()
        words.clear()
        if block:
            blocks.append(block)

    for line in text.splitlines():
        macro, _, rest = line[1:].strip().partition(" ") if line[:1] in (".", "'") else ("", "", "")
        if ends is not None:
            ends = None if macro == ends else ends
        elif macro in ("TS", "nf", "EX", "EQ", "de", "ig"):
            flush()
            ends = {"TS": "TE", "nf": "fi", "EX": "EE", "EQ": "EN"}.get(macro, ".")
        elif macro in _PARAGRAPHS:
            flush()
            if macro in ("SH", "SS"):
                blocks.append(_plain(rest.strip('"')))
        elif macro in _FONTS:
            joint = " " if macro in ("B", "I", "SM", "SB") else ""
            parts = re.findall(r'"([^"]*)"|(\S+)', rest)
            words.append(_plain(joint.join(a or b for a, b in parts)))
        elif not macro and not line.startswith((".", "'")):
            words.append(_plain(line)) if line.strip() else flush()
    flush()
    return blocks


def _plain(text: str) -> str:
    text = re.sub(r'\\".*', "", text)
    for pattern, replacement in _ESCAPES:
        text = pattern.sub(replacement, text)
    return text
