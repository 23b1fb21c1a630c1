"""Checks the built site, and says what is wrong with it: python -m documentation FOLDER."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
EMPTY: Final = frozenset({"area", "br", "col", "hr", "img", "input", "link", "meta", "source"})
"""Elements without an end."""
PARTS: Final = frozenset({"h1", "h2", "h3", "li", "pre", "td", "th"})
"""Elements whose ends count when two views of a page are compared."""
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
        self.feed(html)

    @property
    def words(self) -> list[str]:
        """The article's words, and the ends of what they stand in."""
        return "".join(self._said).split()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note links and anchors."""
        has = dict(attrs)
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
        """Note the words."""
        self._say(data)

    def _say(self, text: str) -> None:
        if self._depth and not self._silent:
            self._said.append(text)


def mistakes(site: Path) -> Iterator[str]:
    """Yield a line for each thing that is wrong with the site."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        # What is shown where nothing was found knows the site's files by their paths from its root.
        folder = path.parent
        for tag, url in page.links:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                if tag != "a":
                    yield f"{name}: {tag} is loaded from elsewhere: {url}"
                elif parts.scheme not in ("http", "https") or not parts.netloc or " " in url:
                    yield f"{name}: no link can be {url!r}"
                continue
            if parts.path.startswith("/"):
                there = site / parts.path.removeprefix("/")
            else:
                there = (folder / unquote(parts.path)).resolve() if parts.path else path
            there = there / "index.html" if there.is_dir() else there
            if not there.is_file():
                yield f"{name}: {url} leads nowhere"
            elif parts.fragment and there in pages:
                if unquote(parts.fragment) not in pages[there].anchors | {"__skip", "__tabbed"}:
                    yield f"{name}: {url} leads to no such place"
    for path in sorted(DOCS.rglob("*.md")):
        markdown, name = path.read_text(encoding="utf-8"), path.relative_to(DOCS)
        if COMPILED in markdown or name == Path("README.md"):
            continue
        html = MarkdownIt("commonmark").enable("table").render(markdown)
        here = Page((site / name.with_suffix(".html")).read_text(encoding="utf-8")).words
        there = Page(html, is_article=True).words
        if differences := list(difflib.unified_diff(there, here, "a code host", "the site", n=3)):
            yield f"{name} is shown otherwise than a code host shows it:\n{' '.join(differences)}"


def main() -> int:
    """Print the mistakes; there may be none."""
    found = list(mistakes(Path(sys.argv[1]).resolve()))
    print("\n".join(found) or f"{sys.argv[1]}: every link leads somewhere")
    return len(found) > 0


if __name__ == "__main__":
    sys.exit(main())
