"""What MkDocs runs while it builds the site: files of the repository as pages, and a check of what was built."""

from __future__ import annotations

import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
ALSO = (
    ".github/CONTRIBUTING.md",
    ".github/SECURITY.md",
    "CHANGELOG.md",
    "bench/PROFILE.md",
    "bench/RESULTS.md",
    "bench/memory.svg",
    "bench/results.svg",
)
"""Files outside of docs/ that are a part of the site."""
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")


def name_in_site(path: str) -> str:
    """``.github/SECURITY.md``: ``project/SECURITY.md``. MkDocs leaves out what begins with a dot."""
    return path.replace(".github/", "project/")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of ``ALSO`` to the site."""
    for path in ALSO:
        files.append(File.generated(config, name_in_site(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links out of docs/ to the added page, or to the repository if the file is not a page of the site."""
    source = page.file.src_uri
    in_repository = next((path for path in ALSO if name_in_site(path) == source), f"docs/{source}")

    def lead(match: re.Match[str]) -> str:
        before, link, anchor, after = match.groups()
        if ":" in link:
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository), link))
        if not (ROOT / target).exists():
            return match[0]  # MkDocs says so
        if target in ALSO:
            target = name_in_site(target)
        elif target.startswith("docs/"):
            target = target.removeprefix("docs/")
        else:
            return f"{before}{REPOSITORY}/blob/main/{target}{anchor or ''}{after}"
        return f"{before}{posixpath.relpath(target, posixpath.dirname(source))}{anchor or ''}{after}"

    return LINK.sub(lead, markdown)


FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\ssrc=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b(?![^>]*rel=["']?(?:canonical|next|prev))[^>]*\shref=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|data-md-component=["']?source\b|class=["']?mermaid\b|url\(["']?(?:https?:)?//[^)]+|@import\s+["'](?:https?:)?//[^"']+"""
)


def on_post_build(config: MkDocsConfig, **_: Any) -> None:
    """Refuse a site whose pages make the browser ask another host for something."""
    site = Path(config.site_dir)
    pages = [path for path in site.rglob("*") if path.suffix in (".html", ".css")]
    found = [f"{path.relative_to(site)}: {match[0]}" for path in pages for match in FETCHED.finditer(path.read_text())]
    if found:
        raise PluginError("pages fetch from other hosts:\n" + "\n".join(found[:20]))


ITEM = re.compile(r"``[^`]+``(?:, ``[^`]+``)*: ")


class Items(griffe.Extension):
    """Shows the lines ````name``: text`` of a docstring as a list, which Markdown would join to one paragraph."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = with_items(obj.docstring.value)


def with_items(text: str) -> str:
    """Return a docstring with its descriptions of names as a list."""
    lines: list[str] = []
    within = False
    for line in text.splitlines():
        if ITEM.match(line):
            if not within and lines and lines[-1]:
                lines.append("")
            within = True
            line = f"- {line}"
        elif within and (not line or line.startswith(" ")):
            within = False
        elif within:
            line = f"  {line}"
        lines.append(line)
    return "\n".join(lines)
