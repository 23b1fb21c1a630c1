"""How the site differs from the repository's Markdown: where it begins, and what links lead to."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parents[2]
DOCS: Final = ROOT / "docs"
INDEX: Final = DOCS / "README.md"
FIRST: Final = ROOT / "README.md"
STYLE: Final = Path(__file__).with_name("site.css")
REPOSITORY: Final = "repository"
"""The part of the site that shows files of the repository to which pages link."""

_FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")
_NAMED = re.compile(r"^`(\S+)`:\n\n```(\w+)$", re.MULTILINE)
_FILE_ONLY = re.compile(r"^\(Where this is read as a file.*\)$", re.MULTILINE)
_CELLS = re.compile(r"^\|.*$", re.MULTILINE)
_CODE = re.compile(r"(`+).+?\1")
_LANGUAGES: Final = {".js": "js", ".md": "md", ".py": "python", ".yaml": "yaml"}


def on_config(config: MkDocsConfig) -> None:
    """Take the navigation from the index of the pages."""
    nav: list[dict[str, list[str]]] = []
    for line in INDEX.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            nav.append({line.removeprefix("## "): []})
        elif line.startswith("- ") and (link := _LINK.search(line)) and nav:
            [pages] = nav[-1].values()
            if link[0] not in pages:
                pages.append(link[0])
    config.nav = [{"wsrelay": "README.md"}, *nav]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the style sheet, and a page for each file of the repository to which a page links."""
    files.append(File.generated(config, STYLE.name, abs_src_path=str(STYLE)))
    shown = set[Path]()
    for path in [FIRST, *DOCS.rglob("*.md")]:
        for part in _FENCE.split(path.read_text(encoding="utf-8"))[::2]:
            targets = {(path.parent / link).resolve() for link in _LINK.findall(part)}
            shown |= {one for one in targets if one.is_file() and not one.is_relative_to(DOCS)}
    for path in sorted(shown - {FIRST}):
        name = path.relative_to(ROOT).as_posix()
        code = f"````{_LANGUAGES.get(path.suffix, 'text')}\n{path.read_text(encoding='utf-8')}````"
        content = f"---\nsearch: {{exclude: true}}\n---\n# {name}\n\n{code}\n"
        files.append(File.generated(config, f"{REPOSITORY}/{name}.md", content=content))


def on_page_read_source(page: Page, config: MkDocsConfig) -> str | None:
    """Begin the site with the README, and the index of the pages behind it."""
    del config
    if page.file.src_uri != INDEX.name:
        return None
    first = _with_links_of_the_site(FIRST.read_text(encoding="utf-8"), FIRST, INDEX)
    index = INDEX.read_text(encoding="utf-8")
    return f"{first}\n{re.sub(r'^#', '##', index, flags=re.MULTILINE)}"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that leave docs/ lead to the pages of the files, and blocks have their names."""
    del config, files
    if page.file.abs_src_path is None:  # it has been made by `on_files`
        return markdown
    markdown = _FILE_ONLY.sub("", _NAMED.sub(r'```\2 title="\1"', markdown))
    markdown = _CELLS.sub(lambda row: _CODE.sub(_without_escapes, row[0]), markdown)
    path = Path(page.file.abs_src_path)
    return _with_links_of_the_site(markdown, path, path)


def _with_links_of_the_site(markdown: str, source: Path, page: Path) -> str:
    """Rewrite the links of a file that becomes the page at another place."""

    def leads_to(match: re.Match[str]) -> str:
        target = (source.parent / match[0]).resolve()
        if ":" in match[0] or not target.exists():
            return match[0]
        if target == FIRST:
            target = INDEX
        elif not target.is_relative_to(DOCS):
            target = DOCS / REPOSITORY / f"{target.relative_to(ROOT)}.md"
        return os.path.relpath(target, page.parent)

    parts = _FENCE.split(markdown)
    parts[::2] = [_LINK.sub(leads_to, part) for part in parts[::2]]
    return "".join(parts)


def _without_escapes(code: re.Match[str]) -> str:
    """Write the `|` of code in a table as Python-Markdown wants it, not as code hosts do."""
    return code[0].replace("\\|", "|")
