"""The page of a document."""

import json
from collections.abc import Mapping


def render(document: Mapping[str, object]) -> str:
    """The page as HTML."""
    content = json.dumps(document, allow_nan=False).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<meta charset="utf-8">\n<meta name="generator" content="megaslm report">\n'
        f'<script type="application/json" id="document">{content}</script>\n'
    )
