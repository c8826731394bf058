"""Takes the project's Markdown; gives its commands, links and anchors, each with the file it stands in."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from suites.selftest.conftest import CHECKOUT

FILES = (
    CHECKOUT / "README.md",
    *sorted((CHECKOUT / "docs").glob("*.md")),
    CHECKOUT / "fixtures" / "mini" / "README.md",
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = ("pytest ", "python -m ", "make ")
KEYWORDS = ("do", "done", "then", "fi")


@dataclass(frozen=True)
class Line:
    """One command as it is written, and the file."""

    file: Path
    text: str

    @property
    def words(self) -> list[str]:
        """What a shell makes of it, without redirections of ours; braces are opened, variables are not."""
        return [word for text in shlex.split(self.text, comments=True) for word in _opened(text)]

    def __str__(self) -> str:
        return f"{self.file.relative_to(CHECKOUT)}: {self.text}"


def blocks(file: Path) -> list[str]:
    """The shell blocks of a file."""
    return [body for language, body in FENCE.findall(file.read_text(encoding="utf-8")) if language == "bash"]


def prose(file: Path) -> str:
    """A file without its blocks."""
    return FENCE.sub("", file.read_text(encoding="utf-8"))


def commands() -> list[Line]:
    """Every command of every block."""
    return [Line(file, text) for file in FILES for block in blocks(file) for text in _commands(block)]


def inline_commands() -> list[Line]:
    """Commands within the text that are whole: those with `…` are not."""
    spans = [(file, " ".join(span.split())) for file in FILES for span in re.findall(r"`([^`]+)`", prose(file))]
    whole = [(file, span) for file, span in spans if span.startswith(INLINE) and "…" not in span]
    return [Line(file, text) for file, span in whole for text in _commands(span) if text != "echo $?"]


def _commands(block: str) -> Iterator[str]:
    """Its commands one by one, out of loops, without comments."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=False, punctuation_chars=";")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word != ";":
                words += [] if not words and word in KEYWORDS else [word]
            elif words:
                if words[0] != "for":
                    yield " ".join(words)
                words = []


def _opened(word: str) -> list[str]:
    """`a-{b,c}` -> `a-b`, `a-c`."""
    found = re.search(r"\{([^{}]*,[^{}]*)\}", word)
    if found is None:
        return [word]
    return [word[: found.start()] + choice + word[found.end() :] for choice in found[1].split(",")]


def links(file: Path) -> list[str]:
    """Targets of the links of a file that do not leave the repository."""
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", prose(file)) if "://" not in target]


def anchors(file: Path) -> set[str]:
    """What a link may name after `#`, as GitHub and GitLab make it of headings."""
    headings = re.findall(r"^#+ (.*)$", prose(file), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
