"""What all pages share: they need nothing from elsewhere, no text can become markup, and they print well."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256
from html import escape
from typing import Any

#: Of every page; colours have names, so that a page can change them.
STYLE = """
:root { --ink: #1a1a1a; --soft: #444; --line: #bbb; --back: #fff; --head: #eee; --blue: #0072b2; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 1100px;
  margin: 2em auto; padding: 0 1em; }
h1, h2 { line-height: 1.2; overflow-wrap: anywhere; } h2 { margin-top: 2em; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); }
th, td { border: 1px solid var(--line); padding: .25em .6em; text-align: right; vertical-align: top; }
th { background: var(--head); } th[scope=row], .text { text-align: left; overflow-wrap: anywhere; }
small { color: var(--soft); white-space: nowrap; }
figure { margin: 1em 0; } img { max-width: 100%; }
figcaption, dd, .note { color: var(--soft); font-size: .92em; }
dt { font-weight: bold; } dd { margin: 0 0 .4em 1em; }
@media print { body { max-width: none; margin: 0; font-size: 11pt; } figure, table { break-inside: avoid; }
  h2 { break-after: avoid; } table { font-size: .85em; } * { print-color-adjust: exact; } }
"""


def document(title: str, body: Iterable[str], *, style: str = "", script: str = "") -> str:
    """A page that may load nothing and runs no script but its own.

    Args:
        title: Text.
        body: Markup, in lines.
        style: CSS beyond ``STYLE``. Elements may have no style of their own.
        script: JavaScript, run when all else is there.
    """
    style = STYLE + style
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    lines = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{style}</style></head><body>",
        *body,
        f"<script>{script}</script></body></html>\n" if script else "</body></html>\n",
    ]
    return "\n".join(lines)


def _digest(text: str) -> str:
    """The source that allows this text and nothing else."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def embedded(name: str, value: Any) -> str:
    """Data for a script, as an element with the id ``name``; no text in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>'
