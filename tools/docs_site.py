"""Hooks of mkdocs: files of the repository that lie outside of docs/ become pages where a page links to them.

Pages link as they would on a code host, by paths within the repository: `../results/lenet5.md` or `../src/npn/step.py`.
"""

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
RESULTS = (f"results/{file.name}" for file in sorted((ROOT / "results").glob("*.md")))
ALWAYS = ("CHANGELOG.md", "CONTRIBUTING.md", *RESULTS)
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the results, the change log and every file that a page links to."""
    waiting = [*ALWAYS, *(path for page in files.documentation_pages() for path in _linked(page.content_string, page))]
    while waiting:
        path = waiting.pop()
        uri = _uri(path)
        if uri is None or uri in files.src_uris or not (ROOT / path).is_file():
            continue
        if uri == path:
            new = File.generated(config, uri, abs_src_path=str(ROOT / path))
        else:
            text = (ROOT / path).read_text(encoding="utf-8")
            new = File.generated(config, uri, content=f"# {path}\n\n````python\n{text}````\n")
        files.append(new)
        if path.endswith(".md"):
            waiting += _linked(new.content_string, new)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to files of the repository at their pages."""

    def moved(match: re.Match[str]) -> str:
        begin, target, anchor, end = match.groups()
        uri = None if "://" in target else _uri(_resolved(target, page.file))
        if uri is None:
            return match[0]
        return f"{begin}{os.path.relpath(uri, posixpath.dirname(page.file.src_uri) or '.')}{anchor or ''}{end}"

    return LINK.sub(moved, markdown)


def _resolved(target: str, file: File) -> str:
    """Path within the repository that a link of a page names."""
    generated = file.generated_by is not None
    folder = posixpath.dirname(file.src_uri if generated else f"docs/{file.src_uri}")
    return posixpath.normpath(posixpath.join(folder, target))


def _linked(markdown: str, file: File) -> Iterator[str]:
    """Paths within the repository that a page links to."""
    for _, target, _, _ in LINK.findall(markdown):
        if "://" not in target:
            yield _resolved(target, file)


def _uri(path: str) -> str | None:
    """Where the site has a file of the repository; None for what it does not show."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.endswith(".py"):
        return f"code/{path}.md"
    return path if path.endswith((".md", ".png", ".json")) else None
