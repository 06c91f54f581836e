"""`health-predict report`: all reports about a model version behind one page."""

from __future__ import annotations

import json
import webbrowser
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from health_predict.adapters.files import writable
from health_predict.commands.operate import AsJson, On
from health_predict.commands.progress import console_of, working
from health_predict.errors import UnreachableError
from health_predict.settings import settings_on

app = typer.Typer(no_args_is_help=True, help="One page about a model version, with all its reports.")

OWN_NAMES = ("127.0.0.1", "localhost")

Version = Annotated[str, typer.Argument(help="Model version; none: the champion")]


@app.command()
def build(
    version: Version = "",
    to: Annotated[Path | None, typer.Option("--to", help="Folder for the page and the reports")] = None,
    on: On = None,
    as_json: AsJson = False,
) -> None:
    """Write the page and copies of the reports into a folder that needs nothing else."""
    page = _build(version, to, on, as_json)
    typer.echo(json.dumps({"page": str(page)}) if as_json else str(page))


@app.command("open")
def open_(
    version: Version = "",
    port: Annotated[int, typer.Option(help="Port on loopback; 0 takes a free one")] = 0,
    browser: Annotated[bool, typer.Option(help="Open it in a browser")] = True,
    on: On = None,
) -> None:
    """Build the page and serve it on loopback until interrupted."""
    page = _build(version, None, on, quiet=False)
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, directory=str(page.parent)))
    except OSError as error:
        raise UnreachableError(f"port {port} cannot be had: {error.strerror}", "leave out --port") from None
    with server:
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        typer.echo(f"{url} (Ctrl-C ends it)")
        if browser:
            webbrowser.open(url)
        server.serve_forever()


def _build(version: str, to: Path | None, on: Any, quiet: bool) -> Path:
    with working(console_of(quiet), "collecting the reports"):
        from health_predict.operations.overview import build_overview  # with MLflow: seconds

        if to:
            writable(to, "name another folder with --to")
        return build_overview(settings_on(on), version, to)


class _Handler(SimpleHTTPRequestHandler):
    """Files of one folder, without a line for each request."""

    def parse_request(self) -> bool:
        """Refuse who asks by another name: a page of another site has one that leads here (DNS rebinding)."""
        if not super().parse_request():
            return False
        if urlsplit(f"//{self.headers.get('host', '')}").hostname in OWN_NAMES:
            return True
        self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "ask by the address that the command has printed")
        return False

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
