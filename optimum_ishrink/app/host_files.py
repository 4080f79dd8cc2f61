"""Files that tell hosts of static sites which headers to send: threads need them."""

from __future__ import annotations

import json

from .parts import MODELS

ISOLATION = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}
"""With these a browser lets the page run several threads."""

RESOURCE_POLICY = "Cross-Origin-Resource-Policy"

IMMUTABLE = "public, max-age=31536000, immutable"
"""For the parts of models, whose paths hold their hash."""

REVALIDATE = "no-cache"


def page_headers(policy: str) -> dict[str, str]:
    """Return the headers of every answer.

    Args:
        policy: The content security policy.
    """
    return {
        **ISOLATION,
        RESOURCE_POLICY: "same-origin",
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }


def headers_file(policy: str) -> str:
    """Return `_headers`, which Netlify and Cloudflare Pages read.

    Args:
        policy: The content security policy.
    """
    lines = ["/*", *(f"  {name}: {value}" for name, value in page_headers(policy).items())]
    return "\n".join([*lines, f"/{MODELS}/*", f"  Cache-Control: {IMMUTABLE}", ""])


def space_readme(title: str) -> str:
    """Return the README.md of a static Space of Hugging Face, whose first lines set its headers.

    The Space is shown within another page, so that its files have to be open to other origins.

    Args:
        title: The site's title.
    """
    headers = {**ISOLATION, RESOURCE_POLICY: "cross-origin"}
    lines = "\n".join(f"  {name.lower()}: {value}" for name, value in headers.items())
    return f"""---
title: {json.dumps(title, ensure_ascii=False)}
sdk: static
app_file: index.html
pinned: false
custom_headers:
{lines}
---

Made by `ishrink app`: models that run in the browser. Nothing that is typed leaves the device.
"""
