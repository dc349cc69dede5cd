"""MkDocs hooks: generated parts, files of the repository as pages, drawings inside the page, no foreign requests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import generate
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

_PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md"}
_DRAWING = re.compile(r"^!\[(?P<alt>[^\]]*)\]\((?P<path>[^)]+\.svg)\)$", re.MULTILINE)
_ROW, _CODE = re.compile(r"^\|.*$", re.MULTILINE), re.compile(r"`[^`]+`")
_SHIM = "https://unpkg.com/iframe-worker/shim"  # asked for by the plugin `offline`; worker.js is in its place
_REQUEST = re.compile(r"""<(?:script|img|iframe|link(?![^>]*rel="canonical"))\b[^>]*(?:src|href)="https?://[^>]*>""")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are kept at the repository's root, with links that hold inside the site."""
    for name, source in _PAGES.items():
        text = (generate.ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the generated parts; put a drawing into the page, where it takes the page's colours."""
    folder = Path(page.file.abs_src_path).parent if page.file.abs_src_path else generate.ROOT / "docs"

    def drawn(found: re.Match[str]) -> str:
        drawing = (folder / found["path"]).read_text(encoding="utf-8").strip()
        return f'<div class="drawing" role="img" aria-label="{found["alt"]}">\n{drawing}\n</div>'

    text = _DRAWING.sub(drawn, generate.expand(markdown))
    # In a table GitHub wants a bar inside code escaped; Python-Markdown would show the backslash.
    return _ROW.sub(lambda row: _CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0]), text)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Take the shim for searching from disk from the site; refuse a page that asks another server for anything."""
    output = output.replace(_SHIM, "../" * page.url.count("/") + "assets/worker.js")
    if found := _REQUEST.search(output):
        raise PluginError(f"{page.file.src_uri}: asks another server: {found[0]}")
    return output
