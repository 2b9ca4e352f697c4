"""The methods' names, titles and papers as their files say them. Imports no method, as those wait for torch."""

import ast
from pathlib import Path


def short_listing() -> str:
    """A line for each method, in the order of its paper: name, title, paper."""
    read = [(path.stem, row) for path in Path(__file__).parent.glob("*.py") for row in _registrations(path)]
    rows = [row for _, row in sorted(read, key=lambda pair: (pair[1].get("paper", "~"), pair[0]))]
    width = max(len(row["name"]) for row in rows)
    return "\n".join(
        f"    {row['name']:{width}}  {row.get('title', row['name'].replace('_', ' '))}"
        + (f" (arXiv:{row['paper']})" if "paper" in row else "")
        for row in rows
    )


def _registrations(path: Path) -> list[dict[str, str]]:
    """What stands as text in every `@register(name, title=..., paper=...)` of a file."""
    rows = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for call in getattr(node, "decorator_list", []):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "register":
                texts = {"name": call.args[0], **{word.arg: word.value for word in call.keywords if word.arg}}
                rows.append({key: str(value.value) for key, value in texts.items() if isinstance(value, ast.Constant)})
    return rows
