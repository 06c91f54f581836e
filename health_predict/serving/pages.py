"""What the service says about itself: `/health`, `/metrics`, `/docs.json`, and the page at `/` and `/docs`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from health_predict.adapters.tokens import Role
from health_predict.core.data.contract import Kind
from health_predict.serving.predictor import Predictor

PATHS = ("/health", "/metrics", "/docs.json", "/", "/docs")
CREDENTIAL = """
<p><label for="token">The token of an operator. It stays in this page and is forgotten with it.</label>
<input type="password" id="token" autocomplete="off" spellcheck="false"></p>"""
FOLDER = resources.files("health_predict.serving")


def pages(predictor: Predictor, document: Callable[[bool], dict[str, Any]], *, asks: bool) -> Starlette:
    """The application that is mounted beside BentoML's API.

    `document` makes the OpenAPI document, with or without the model that serves; `asks`: the endpoint asks for a token.
    """

    def told(request: Request) -> bool:
        return Role.CLIENT in request.auth.scopes

    async def health(request: Request) -> Response:
        return JSONResponse(predictor.health(told=told(request)), 503 if predictor.problem else 200)

    async def metrics(request: Request) -> Response:
        text, content_type = predictor.metrics.text(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type, "vary": "accept"})

    async def openapi(request: Request) -> Response:
        return JSONResponse(document(told(request)))

    async def page(request: Request) -> Response:
        return HTMLResponse(_page(predictor, document(told(request)), told(request), asks))

    answers = dict(zip(PATHS, (health, metrics, openapi, page, page), strict=True))
    return Starlette(routes=[Route(path, answer) for path, answer in answers.items()])


def _page(predictor: Predictor, document: dict[str, Any], told: bool, asks: bool) -> str:
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
    health = predictor.health(told=told)
    warning = predictor.warning or predictor.problem if told else ""
    banner = f'<p class="warning" role="alert">{escape(warning)}</p>' if warning else ""
    title = escape(document["info"]["title"])
    style, script = (FOLDER.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{title}</title><style>{style}</style></head><body><main>
<h1>{title}</h1><p class="soft" id="model">Model version {escape(health.get("model_version", "unknown"))},
{escape(health.get("family", ""))}, <code>{escape(health.get("bento_tag", ""))}</code></p>{banner}{CREDENTIAL * asks}
<p>{escape(document["info"]["description"])}</p>
<h2>Try one encounter</h2>
<form id="one"><p><label for="body">An encounter as JSON. A try is not logged and counts as nobody.</label></p>
<textarea id="body" spellcheck="false">{escape(json.dumps(contract.request, indent=2))}</textarea>
<p><button>Predict</button></p></form><output id="answer" aria-live="polite"></output>
<h2>Try a file of them</h2>
<form id="many"><p><label for="file">A CSV with the columns below in its first line, or a JSON list. It is not logged.
</label></p><p><input type="file" id="file" accept=".csv,.json" required> <button>Predict all</button></p></form>
<output id="answers" aria-live="polite"></output>
<h2>The same by program</h2>
<p>The encounter above, in a shell:</p><pre id="curl" tabindex="0"></pre>
<p>In Python:</p><pre id="python" tabindex="0"></pre>
<h2>Paths</h2>{_table("Paths", ("Method", "Path", "Purpose", "Answers"), operations)}
<p>For programs: <a href="docs.json">docs.json</a> (OpenAPI)</p>
<h2>Fields of an encounter</h2>{_table("Fields", ("Field", "Required", "Values", "Meaning"), fields)}</main>
<script type="application/json" id="known">{_known(predictor, health, asks)}</script>
<script>{script}</script></body></html>
"""


def _known(predictor: Predictor, health: dict[str, Any], asks: bool) -> str:
    """What the page's script has to know, as JSON that may stand in a page."""
    contract = predictor.contract
    columns = (*contract.features, *contract.identifiers)
    known = {
        "happened": contract.outcome.happened,
        "asks": asks,
        "threshold": health.get("threshold", 0.0),
        "explains": predictor.explains,
        "columns": [column.name for column in columns],
        "amounts": [column.name for column in columns if column.kind in (Kind.COUNT, Kind.NUMBER)],
        "words": {column.name: column.words for column in contract.features if column.words},
    }
    return json.dumps(known).replace("<", "\\u003c")


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
