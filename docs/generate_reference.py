"""`make reference`: the pages of docs/reference/, from settings, command line, service and pipelines."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from typer.main import get_command

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reference"

sys.path.insert(0, str(ROOT))
from health_predict import (  # noqa: E402
    cli,
    components,
    errors,
)
from health_predict.pipelines import PIPELINES  # noqa: E402
from health_predict.settings import PREFIX, PROFILE_DEFAULTS, Profile, Settings  # noqa: E402

NOTE = "<!-- written by `make reference`; a test compares it with the code -->"
PROGRAM = "health-predict"


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; a bar within a cell is escaped."""
    lines = [list(head), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def page(title: str, *parts: str) -> str:
    """A whole page."""
    return "\n\n".join([NOTE, f"# {title}", *(part for part in parts if part)]) + "\n"


# Settings


def settings_page() -> str:
    """Every setting, and what the profiles change."""
    schema = Settings.model_json_schema()
    rows = [
        (f"`{PREFIX}{name.upper()}`", _shown(field.default), _allowed(schema, name), field.description)
        for name, field in Settings.model_fields.items()
    ]
    changed = list(dict.fromkeys(name for defaults in PROFILE_DEFAULTS.values() for name in defaults))
    profiles = [
        (
            f"`{PREFIX}{name.upper()}`",
            *(_shown(PROFILE_DEFAULTS.get(one, {}).get(name, Settings.model_fields[name].default)) for one in Profile),
        )
        for name in changed
    ]
    return page(
        "Settings",
        "Every setting is an environment variable. An unknown one with the prefix is an error, an empty one counts as "
        "not set.",
        table(("setting", "default", "value", "meaning"), rows),
        "## Profiles",
        f"`{PREFIX}PROFILE` chooses other defaults, nothing else. On `aws` the host's bootstrap sets the addresses.",
        table(("default of", *Profile), profiles),
    )


def _shown(value: Any) -> str:
    value = getattr(value, "value", value)
    return "" if value in ("", ()) else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _allowed(schema: Mapping[str, Any], name: str) -> str:
    found = schema["properties"][name]
    if "$ref" in found:
        found = schema["$defs"][found["$ref"].rpartition("/")[2]]
    if "enum" in found:
        return ", ".join(found["enum"])
    kind = {"string": "text", "array": "list of texts"}.get(found["type"], found["type"])
    limits = [
        f"{word} {found[key]:,}"
        for key, word in (
            ("minimum", "from"), ("exclusiveMinimum", "above"), ("exclusiveMaximum", "below"), ("maximum", "to")
        )
        if key in found
    ]  # fmt: skip
    return " ".join([kind, *limits]) + (f" `{found['pattern']}`" if "pattern" in found else "")


# Commands


def commands_page() -> str:
    """Every command with its arguments and options, and the exit codes."""
    root = get_command(cli.app)
    found = list(_commands(root, root.context_class(root, info_name=PROGRAM)))
    overview = [(f"[`{path}`](#{path.replace(' ', '-')})", _sentence(command.help or "")) for path, command, _ in found]
    codes = [
        (0, "Done"),
        *((kind.exit_code, _line(kind)) for kind in vars(errors).values() if isinstance(kind, type)),
        (cli.UNEXPECTED, "Unexpected; `--debug` shows where"),
        (130, "Interrupted"),
    ]
    return page(
        "Commands",
        "`--debug` before a command shows the stack trace of an error. With `--json` a command prints one JSON value "
        "as the last line of standard output. `--help` says what is on this page.",
        table(("command", "what it does"), overview),
        *(_command(*one) for one in found),
        "## Exit codes",
        table(("code", "meaning"), codes),
    )


def _commands(command: Any, context: Any) -> Iterator[tuple[str, Any, Any]]:
    """Path, command and context of each command that does something, without the groups."""
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        within = inner.context_class(inner, info_name=name, parent=context)
        if hasattr(inner, "commands"):
            yield from _commands(inner, within)
        else:
            yield within.command_path.removeprefix(f"{PROGRAM} "), inner, within


def _command(path: str, command: Any, context: Any) -> str:
    usage = " ".join([PROGRAM, path, *command.collect_usage_pieces(context)])
    described = "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))
    records = [item.get_help_record(context) for item in command.get_params(context) if item.name != "help"]
    rows = [(f"`{name}`", text) for name, text in (record for record in records if record)]
    parts = [f"## {path}", described, f"    {usage}"]
    return "\n\n".join(parts + ([table(("argument or option", "meaning"), rows)] if rows else []))


def _sentence(text: str) -> str:
    return text.partition("\n")[0].rstrip(".")


def _line(kind: type[errors.HealthPredictError]) -> str:
    if kind is errors.HealthPredictError:
        return "Failed, for a reason the message names"
    return _sentence(kind.__doc__ or "")


# HTTP


def http_page() -> str:
    """Every path of the service, and what goes in and out."""
    from health_predict.serving.document import document

    # A Bento's folder without its model: what the document says of a model is not on the page.
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "bentos" / "readmission" / "service.py", folder)
        (Path(folder) / "requirements.txt").write_text("bentoml")
        sys.path.insert(0, folder)
        service = import_module("service")
        sys.path.remove(folder)
    api = document(service.Readmission, service.ROUTES, service.PREDICTOR)
    schemas = api["components"]["schemas"]
    parts = [
        _operation(method.upper(), path, operation)
        for path, methods in api["paths"].items()
        for method, operation in methods.items()
    ]
    for name, schema in schemas.items():
        if "items" in schema:
            parts += [f"## {name}", f"A {_json_type(schema)}: {schema.get('description', '')}"]
            continue
        required = schema.get("required", ())
        rows = [
            (f"`{field}`", _json_type(item), "yes" if field in required else "", item.get("description", ""))
            for field, item in schema["properties"].items()
        ]
        parts += [
            f"## {name}",
            schema.get("description", ""),
            table(("field", "value", "always there", "meaning"), rows),
        ]
    return page(
        "HTTP",
        "The service's own OpenAPI document, with the model's figures, is at `/docs.json`; a page that sends requests "
        "at `/`. [The prediction service](../serving.md) says how it behaves, [a client](../client.md) how to call it.",
        *parts,
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parts = [f"## {method} {path}", f"{operation['summary']}."]
    body = operation.get("requestBody")
    if body:
        parts.append(f"Takes {_json_type(body['content']['application/json']['schema'])} as `application/json`.")
    asked = [
        (f"`{item['name']}`", f"`{str(item['schema']['default']).lower()}`", item["description"])
        for item in operation.get("parameters", ())
    ]
    answers = []
    for status, answer in operation["responses"].items():
        ((media, content),) = answer.get("content", {"": {}}).items()
        answers.append((status, answer["description"], _json_type(content["schema"]) if "json" in media else media))
    if asked:
        parts.append(table(("query", "default", "meaning"), asked))
    return "\n\n".join([*parts, table(("status", "when", "answer"), answers)])


def _json_type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_json_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join("null" if one is None else f"`{one}`" for one in schema["enum"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    text = " or ".join(kinds)
    if "array" in kinds:
        return f"list of {_json_type(schema['items'])}"
    if "minimum" in schema:
        text += f", {schema['minimum']} to {schema['maximum']}"
    return text + (f", `{schema['pattern']}`" if "pattern" in schema else "")


# Pipelines and components


def pipelines_page() -> str:
    """Every pipeline and every component: what goes in, what comes out."""
    parts = []
    for kind, found in (
        ("Pipeline", PIPELINES.items()),
        ("Component", [(name, getattr(components, name)) for name in components.__all__]),
    ):
        for name, one in found:
            spec = one.component_spec
            defaults = kind == "Pipeline"
            takes = [
                (f"`{key}`", _kfp_type(item.type), *([_default(item)] if defaults else ()), item.description)
                for key, item in (spec.inputs or {}).items()
            ]
            gives = [(f"`{key}`", _kfp_type(item.type), item.description) for key, item in (spec.outputs or {}).items()]
            parts += [
                f"## {kind} {name}",
                spec.description,
                table(("takes", "type", *(["default"] if defaults else ()), "meaning"), takes),
                table(("gives", "type", "meaning"), gives),
            ]
    return page(
        "Pipelines and components",
        "`health-predict pipeline run NAME -p parameter=value` runs a pipeline. A parameter that is empty is as in the "
        "[settings](settings.md) of the place where the tasks run; what is set in the environment of the command goes "
        "with the run. The components are its tasks, in "
        "the dashboard under the names of `pipelines/*.py`.",
        *parts,
    )


def _kfp_type(name: str) -> str:
    return name.partition("@")[0].rpartition(".")[2]


def _default(item: Any) -> str:
    return "" if not item.optional else "empty" if item.default in ("", []) else f"`{item.default}`"


def pages() -> dict[Path, str]:
    """Text of each page by its file."""
    made = {"commands": commands_page, "settings": settings_page, "http": http_page, "pipelines": pipelines_page}
    return {FOLDER / f"{name}.md": make() for name, make in made.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")
        print(file.relative_to(ROOT))
