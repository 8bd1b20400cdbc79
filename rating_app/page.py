"""The page shell: one Gradio HTML block with a static template; everything that moves is in static/*.js."""

from __future__ import annotations

import os
from functools import cache
from hashlib import sha256
from pathlib import Path

from fastapi import FastAPI

STATIC = Path(__file__).resolve().parent / "static"


def static_template() -> str:
    """The page's HTML. Gradio evaluates `${}` and `{{}}` in templates as code, so neither may occur in it."""
    text = (STATIC / "page.html").read_text(encoding="utf-8")
    assert "${" not in text and "{{" not in text and "`" not in text, "page.html must stay static"
    return text


@cache
def static_digest() -> str:
    """Changes whenever a static file does, so that no browser mixes old and new files."""
    digest = sha256()
    for path in sorted(STATIC.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def mount_page(app: FastAPI) -> FastAPI:
    """Mounts the rating page at the root. Imports Gradio, which takes seconds and must not phone home."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    import gradio as gr

    with gr.Blocks(title="Attune: listen and compare", analytics_enabled=False) as page:
        gr.HTML("", html_template=static_template(), js_on_load=None, apply_default_css=False, elem_id="attune-shell")
    version = static_digest()
    head = (
        f'<link rel="stylesheet" href="/player/{version}/page.css">'
        f'<link rel="stylesheet" href="/player/{version}/abplayer.css">'
        f'<script type="module" src="/player/{version}/page.js"></script>'
    )
    system_fonts = ["system-ui", "sans-serif"]  # Gradio's own themes ask for web fonts
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        head=head,
        theme=gr.themes.Base(font=system_fonts, font_mono=["ui-monospace", "monospace"]),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        show_error=False,
    )
