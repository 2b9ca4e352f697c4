"""Of `make docs`: files that pages link outside of docs/ go into the site, as GitHub shows them."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)")
ROOT = Path(__file__).resolve().parent.parent


def on_files(files: Any, config: Any) -> Any:
    linked = {path for page in files.documentation_pages() for path in OUTSIDE.findall(page.content_string)}
    for path in sorted(linked):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return OUTSIDE.sub(r"](\1", markdown)
