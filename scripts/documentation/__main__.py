"""Checks the built site, and says what is wrong with it: python -m documentation FOLDER."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from markdown_it import MarkdownIt

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
EMPTY: Final = frozenset({"area", "br", "col", "hr", "img", "input", "link", "meta", "source"})
"""Elements without an end."""
PARTS: Final = frozenset({"h1", "h2", "h3", "li", "pre", "td", "th"})
"""Elements whose ends count when two views of a page are compared."""
OF_THE_THEME: Final = {"__skip"}
"""Anchors that are made where they are needed."""
COMPILED: Final = "\n::: "
"""What stands in pages for docstrings, which a code host does not show."""


class Page(HTMLParser):
    """What of a page matters here: its links, its anchors, and the words of its article."""

    def __init__(self, html: str, *, is_article: bool = False) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        """Each with the element that has it."""
        self.anchors: set[str] = set()
        self._said: list[str] = []
        self._depth = int(is_article)
        self._silent = 0
        self._is_name = False
        self.feed(html)

    @property
    def words(self) -> list[str]:
        """The article's words, and the ends of what they stand in."""
        return "".join(self._said).split()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note links and anchors."""
        has = dict(attrs)
        self._is_name = has.get("class") == "filename"
        self.anchors.update(one for key in ("id", "name") if (one := has.get(key)))
        self.links += [(tag, url) for key in ("href", "src") if (url := has.get(key)) is not None]
        if tag in EMPTY:
            return
        self._depth += bool(self._depth or tag == "article")
        self._silent += bool(self._silent or tag == "script" or has.get("class") == "headerlink")
        self._say(" " if tag in PARTS else "")

    def handle_endtag(self, tag: str) -> None:
        """Note what ends."""
        self._depth, self._silent = max(0, self._depth - 1), max(0, self._silent - 1)
        self._say(f" <{tag}> " if tag in PARTS else "")

    def handle_data(self, data: str) -> None:
        """Note the words; the name above a block is a line of its own on a code host."""
        self._say(f" {data}: " if self._is_name else data)
        self._is_name = False

    def _say(self, text: str) -> None:
        if self._depth and not self._silent:
            self._said.append(text)


def mistakes(site: Path) -> Iterator[str]:
    """Yield a line for each thing that is wrong with the site."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        for tag, url in page.links:
            parts = urlsplit(url)
            outside = bool(parts.scheme or parts.netloc)
            wrong = _outside(tag, url, parts) if outside else _inside(site, path, parts, pages)
            if wrong:
                yield f"{path.relative_to(site)}: {url} {wrong}"
    for path in sorted(DOCS.rglob("*.md")):
        name = path.relative_to(DOCS)
        shown = site / name.with_suffix(".html")
        if name != Path("README.md") and (differences := _differences(path, pages[shown])):
            yield f"{name} is shown otherwise than a code host shows it:\n{differences}"


def _outside(tag: str, url: str, parts: SplitResult) -> str:
    """Return what is wrong with an address of another site, which is not visited."""
    if tag != "a":
        return "is loaded from elsewhere"
    good = parts.scheme in ("http", "https") and parts.netloc and not re.search(r"\s", url)
    return "" if good else "can be no address"


def _inside(site: Path, path: Path, parts: SplitResult, pages: dict[Path, Page]) -> str:
    """Return what is wrong with an address of this site."""
    there = path
    if parts.path:  # where nothing is found, the addresses begin at the root
        folder = site if parts.path.startswith("/") else path.parent
        there = (folder / unquote(parts.path).lstrip("/")).resolve()
    there = there / "index.html" if there.is_dir() else there
    if not there.is_file():
        return "leads nowhere"
    anchor = unquote(parts.fragment)
    missing = anchor and there in pages and anchor not in pages[there].anchors | OF_THE_THEME
    return "leads to no such place" if missing else ""


def _differences(path: Path, here: Page) -> str:
    """Return in what the site's words differ from those of a code host's view of the page."""
    markdown = path.read_text(encoding="utf-8")
    if COMPILED in markdown:
        return ""
    there = Page(MarkdownIt("commonmark").enable("table").render(markdown), is_article=True)
    if there.words == here.words:
        return ""
    lines = difflib.unified_diff(there.words, here.words, "a code host", "the site", n=3)
    return " ".join(lines)


def main() -> int:
    """Print the mistakes; there may be none."""
    found = list(mistakes(Path(sys.argv[1]).resolve()))
    print("\n".join(found) or f"{sys.argv[1]}: every link leads somewhere")
    return len(found) > 0


if __name__ == "__main__":
    sys.exit(main())
