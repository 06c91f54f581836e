"""What the service says about itself: `/health`, `/metrics`, `/docs.json`, and the page at `/` and `/docs`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from health_predict.serving.metrics import CONTENT_TYPE
from health_predict.serving.predictor import Predictor

PATHS = ("/health", "/metrics", "/docs.json", "/", "/docs")
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2rem}code,pre,textarea{font:13px/1.45 monospace}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #d0d7de;
vertical-align:top}textarea{width:100%;height:16rem;box-sizing:border-box}button{padding:.4rem 1rem}
.scroll{overflow-x:auto}p{overflow-wrap:break-word}
.warning{background:#b42318;color:#fff;padding:.6rem 1rem;font-weight:600}
pre{background:#f6f8fa;padding:.8rem;overflow:auto}
@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}td,th{border-color:#30363d}
pre{background:#161b22}
textarea{background:#161b22;color:#e6edf3}}
"""
SCRIPT = """
document.querySelector('form').addEventListener('submit', async event => {
  event.preventDefault();
  const output = document.querySelector('output pre');
  try {
    const answer = await fetch('predict?log=false', {method: 'POST', headers: {'content-type': 'application/json'},
      body: document.querySelector('textarea').value});
    output.textContent = answer.status + '\\n' + JSON.stringify(await answer.json(), null, 2);
  } catch (error) { output.textContent = String(error); }
});
"""


def pages(predictor: Predictor, document: Callable[[], dict[str, Any]]) -> Starlette:
    """The application that is mounted beside BentoML's API; `document` makes the OpenAPI document."""

    async def health(_: Request) -> Response:
        return JSONResponse(predictor.health(), 503 if predictor.problem else 200)

    async def metrics(_: Request) -> Response:
        return Response(predictor.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def openapi(_: Request) -> Response:
        return JSONResponse(document())

    async def page(_: Request) -> Response:
        return HTMLResponse(_page(predictor, document()))

    answers = dict(zip(PATHS, (health, metrics, openapi, page, page), strict=True))
    return Starlette(routes=[Route(path, answer) for path, answer in answers.items()])


def _page(predictor: Predictor, document: dict[str, Any]) -> str:
    contract = predictor.contract
    operations = [
        (method.upper(), path, operation.get("summary", ""), ", ".join(operation["responses"]))
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    fields = [
        (column.name, "" if column.nullable else "yes", column.allowed, f"{column.description}.")
        for column in (*contract.features, *contract.identifiers)
    ]
    health = predictor.health()
    warning = predictor.warning or predictor.problem
    banner = f'<p class="warning" role="alert">{escape(warning)}</p>' if warning else ""
    title = escape(document["info"]["title"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,"><title>{title}</title><style>{STYLE}</style></head><body>
<h1>{title}</h1><p>Model version {escape(health.get("model_version", "unknown"))}, {escape(health.get("family", ""))},
<code>{escape(health.get("bento_tag", ""))}</code></p>{banner}
<p>{escape(document["info"]["description"])}</p>
<h2>Paths</h2>{_table("Paths", ("Method", "Path", "Purpose", "Answers"), operations)}
<p>The same for programs: <a href="docs.json">docs.json</a> (OpenAPI)</p>
<h2>Try it</h2><form><label for="body">POST /predict?log=false, so that a try counts as nobody</label>
<textarea id="body" spellcheck="false">{escape(json.dumps(contract.request, indent=2))}</textarea>
<p><button>Send</button></p></form><output aria-live="polite"><pre></pre></output>
<h2>Fields of an encounter</h2>{_table("Fields", ("Field", "Required", "Values", "Meaning"), fields)}
<script>{SCRIPT}</script></body></html>
"""


def _table(name: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    header = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td><code>{escape(text)}</code></td>" if at < 2 else f"<td>{escape(text)}</td>"
            for at, text in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0">'
        f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>"
    )
