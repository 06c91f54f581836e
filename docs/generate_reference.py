"""`make reference`: the pages of docs/reference/, from settings, command line, service and pipelines."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import grimp
from typer.main import get_command

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reference"

sys.path.insert(0, str(ROOT))
import health_predict  # noqa: E402
from benchmarks.parts import results  # noqa: E402
from health_predict import cli, components, errors  # noqa: E402
from health_predict.adapters.contracts import built_in  # noqa: E402
from health_predict.core.data import contract  # noqa: E402
from health_predict.core.data.contract_file import file_schema  # noqa: E402
from health_predict.pipelines import PIPELINES  # noqa: E402
from health_predict.settings import PREFIX, PROFILE_DEFAULTS, Profile, Settings  # noqa: E402

NOTE = "<!-- written by `make reference`; a test compares it with the code -->"
PROGRAM = "health-predict"


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; a bar within a cell is escaped."""
    lines: list[list[object]] = [list(head), *(list(row) for row in rows)]
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
    return "" if value in ("", (), None) else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _allowed(schema: Mapping[str, Any], name: str) -> str:
    found = schema["properties"][name]
    if "$ref" in found:
        found = schema["$defs"][found["$ref"].rpartition("/")[2]]
    if "enum" in found:
        return ", ".join(found["enum"])
    # Of what may be absent, the kind that it has where it is there.
    found = next(one for one in found.get("anyOf", [found]) if one["type"] != "null")
    kind = {"string": "text", "array": "list of texts"}.get(found["type"], found["type"])
    if found.get("format") == "date-time":
        kind = "date and time with its zone"
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
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    kinds = [kind for kind in classes if issubclass(kind, errors.HealthPredictError)]
    codes = [
        (0, "Done"),
        *((kind.exit_code, _line(kind)) for kind in kinds),
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
    from health_predict.serving.openapi import document

    # A Bento's folder without its model: what the document says of a model is not on the page.
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "bentos" / "readmission" / "service.py", folder)
        (Path(folder) / "contract.json").write_bytes(built_in().to_json())
        (Path(folder) / "requirements.txt").write_text("bentoml")
        sys.path.insert(0, folder)
        service = import_module("service")
        sys.path.remove(folder)
    api = document(service.Readmission, service.ROUTES, service.PREDICTOR, told=False, asks=True)
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
        "at `/`. Where the service asks for tokens, the document says so as this page does. [The prediction "
        "service](../serving.md) says how it behaves, [a client](../client.md) how to call it.",
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
        holds = ", ".join(
            _json_type(content["schema"]) if "json" in media else media
            for media, content in answer.get("content", {}).items()
        )
        answers.append((status, answer["description"], holds))
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


# Figures

README = ROOT / "README.md"
FIRST, LAST = "<!-- figures: written by `make reference` from benchmarks/results/ -->", "<!-- end of figures -->"
# The benchmark, what it measured, the figure, and the command that measures it again. One without results is left out.
FIGURES = [
    (
        "arrivals",
        "a month of {arrivals[rows]:,.0f} arrivals: the night that closes and judges it; all other nights; memory",
        "{arrivals[last_night]:.0f} s; {arrivals[other_nights]:.0f} s; {arrivals[gib]:.1f} GiB",
        "bench-arrivals",
    ),
    (
        "demo",
        "first `make demo`, after installation; a second one, which verifies every link and changes nothing",
        "{demo[first_seconds]:.0f} s; {demo[again_seconds]:.0f} s",
        "bench-demo",
    ),
    (
        "serving",
        "server CPU of a request over HTTP, FastAPI with pandas and scikit-learn against ours; four families, least "
        "favourable of 1, 8 and 32 clients",
        "{serving[cpu_vs_naive]:.0f} times ours",
        "bench-serving",
    ),
    (
        "serving",
        "the same, ours against a tuned BentoML service that answers a constant; the 99th percentile of its latency",
        "{serving[cpu_vs_echo]:.1f} times as much; {serving[p99_vs_echo]:.1f} times as long",
        "bench-serving",
    ),
    (
        "serving",
        "CPU of 10,000 rows in one request, the pandas service against ours",
        "{serving[batch_cpu_vs_pandas]:.1f} times ours",
        "bench-serving",
    ),
    (
        "serving",
        "what the prediction log adds to the CPU of a request",
        "{serving[log_cpu]:.0%}",
        "bench-serving",
    ),
    (
        "single_row",
        "CPU of one prediction in the process, pandas and scikit-learn against the compiled model",
        "{single_row[least_cpu_vs_pandas]:.0f} to {single_row[most_cpu_vs_pandas]:.0f} times ours",
        "bench",
    ),
    (
        "first_model",
        "first model, first window of outcomes, {first_model[salts]} salts of the patient split: slope alarms as it "
        "is; without its calibration",
        "{first_model[slope_alarms]}; {first_model[slope_alarms_without_map]}",
        "bench-first-model",
    ),
    (
        "search",
        "search of 24 trials, the usual Ray Tune script against ours, which also calibrates its winners out of fold; "
        "wall clock and CPU",
        "{search[wall_vs_usual]:.1f} and {search[cpu_vs_usual]:.1f} times ours, AUC {search[auc_usual]:.3f} and "
        "{search[auc]:.3f}",
        "bench-search",
    ),
    (
        "search",
        "the same search, ours against Optuna alone on one core: 24 trials; 99 trials",
        "{search[wall_vs_optuna_24]:.1f}; {search[wall_vs_optuna_100]:.1f} times as long",
        "bench-search",
    ),
    (
        "search",
        "memory of that search over all its processes: 24 trials; 99 trials",
        "{search[gib]:.1f} GiB; {search[gib_100]:.1f} GiB",
        "bench-search",
    ),
    (
        "image",
        "a second model's image, from Bento to pushed digest",
        "{image[cpu_seconds]:.2f} s of CPU, {image[push_bytes]:,} bytes pushed",
        "bench-image",
    ),
    (
        "image",
        "the same, `buildah` or `docker` with the first model's layers cached against ours",
        "{image[cpu_vs_builder]:.0f} times our CPU",
        "bench-image",
    ),
    (
        "drift",
        "input drift of 5,088 rows, Evidently's preset against ours, imports not counted",
        "{drift[cpu_vs_evidently]:.0f} times our CPU",
        "bench-drift",
    ),
    (
        "drift",
        "false alarms on 400 clean resamples; power for six strong shifts at 2,000 rows",
        "at most {drift[false_alarm_max]:.1%}; {drift[power_min]:.0%}",
        "bench-drift",
    ),
    (
        "drift",
        "real stream: gain of retraining at every batch that the drift policy keeps, with {drift[retrainings]} "
        "retrainings",
        "{drift[gain_kept]:.0%} ([more](docs/drift.md))",
        "bench-drift",
    ),
]


def readme() -> str:
    """README with its figures as the result files have them."""
    found = results.load()
    rows = [
        (what.format(**found), figure.format(**found), f"`make {target}`")
        for benchmark, what, figure, target in FIGURES
        if benchmark in found
    ]
    before, rest = README.read_text(encoding="utf-8").split(FIRST)
    return f"{before}{FIRST}\n\n{table(('what', 'figure', 'command'), rows)}\n\n{LAST}{rest.split(LAST)[1]}"


# Rooms

ARCHITECTURE = ROOT / "docs" / "architecture.md"
FIRST_OF_ROOMS, LAST_OF_ROOMS = "<!-- rooms: drawn by `make reference` from the imports -->", "<!-- end of rooms -->"
# Shown by the rooms in them.
HOUSES = ("core", "adapters")


def rooms() -> dict[str, set[str]]:
    """Each folder of the library with the folders that its modules import from."""
    graph = grimp.build_graph("health_predict")
    arrows: dict[str, set[str]] = {}
    for module in graph.modules:
        there = {_room(name) for name in graph.find_modules_directly_imported_by(module)}
        arrows.setdefault(_room(module), set()).update(there)
    library = Path(next(iter(health_predict.__path__)))
    shown = {room for room in arrows if room and room not in HOUSES and (library / room).is_dir()}
    return {room: arrows[room] & shown - {room} for room in shown}


def _room(module: str) -> str:
    parts = module.split(".")[1:]
    return "/".join(parts[: 2 if parts[:1] and parts[0] in HOUSES else 1])


def _node(room: str) -> str:
    return f'{room.replace("/", "_")}["{room}"]'


def architecture() -> str:
    """The page on the architecture with the picture of the rooms. An arrow that a longer way implies is left out."""
    arrows = rooms()

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            for room in arrows[waiting.pop()] - found:
                found.add(room)
                waiting.append(room)
        return found

    beyond = {room: reached(room) for room in arrows}
    lines = ["```mermaid", "flowchart TD"]
    for room in sorted(arrows):
        for other in sorted(arrows[room]):
            if not any(other in beyond[between] for between in arrows[room] - {other}):
                lines.append(f"  {_node(room)} --> {_node(other)}")
    picture = "\n".join([*lines, "```"])
    before, rest = ARCHITECTURE.read_text(encoding="utf-8").split(FIRST_OF_ROOMS)
    return f"{before}{FIRST_OF_ROOMS}\n\n{picture}\n\n{LAST_OF_ROOMS}{rest.split(LAST_OF_ROOMS)[1]}"


# The data contract

SCHEMA = FOLDER / "contract.schema.json"
_PARTS = (
    (contract.Contract, "The file", "One mapping. `columns` is a mapping from the names of the columns."),
    (contract.Column, "A column", "Below `columns`, under its name."),
    (contract.Outcome, "The outcome", "Below `outcome`: of the row itself, or by `next` of the patient's next row."),
    (contract.Next, "The next row", "Below `outcome: next`."),
    (contract.Exclusion, "An exclusion", "Each item of `exclude`."),
    (contract.Group, "A group", "Each item of `groups`."),
    (contract.Subgroups, "Subgroups", "Each item of `subgroups`."),
    (contract.Published, "Published data", "Below `published`."),
)
_KINDS = {
    "identifier": "names an encounter or a patient: any text, or with `numeric` a whole number; never a feature",
    "date": "a day as YYYY-MM-DD; never a feature",
    "count": "a whole number from `minimum` (0) to `maximum`",
    "number": "a measurement from `minimum` to `maximum`, in `unit`",
    "level": "one of `levels`, and nothing else",
    "open level": "usually one of `levels`; a new one is scored and counted",
    "flag": "no or yes, as the two `levels` are written",
    "code": "a diagnosis code of `system`: icd9cm or icd10cm, by exactly its pattern",
}


def _word_default(value: Any) -> str:
    return f"`{', '.join(value)}`" if value and isinstance(value, tuple) else "" if value == {} else _shown(value)


def contract_reference_page() -> str:
    """Every word of a contract file."""
    parts = [
        "What a contract file may say; [own-table.md](../own-table.md) shows how one is made. "
        f"[{SCHEMA.name}]({SCHEMA.name}) says it to editors, by a first line `# yaml-language-server: $schema=...`.",
        "## Kinds of columns",
        table(("Kind", "Holds"), ((f"`{kind}`", text) for kind, text in _KINDS.items())),
    ]
    for model, title, text in _PARTS:
        rows = [
            (f"`{name}`", "required" if field.is_required() else _word_default(field.default), field.description or "")
            for name, field in model.model_fields.items()
            if not (model is contract.Column and name == "name")
        ]
        parts += [f"## {title}", text, table(("Word", "Default", "Meaning"), rows)]
    return page("The data contract", *parts)


def pages() -> dict[Path, str]:
    """Text of each page by its file."""
    made = {
        "commands": commands_page,
        "contract": contract_reference_page,
        "settings": settings_page,
        "http": http_page,
        "pipelines": pipelines_page,
    }
    return {FOLDER / f"{name}.md": make() for name, make in made.items()} | {
        SCHEMA: json.dumps(file_schema(), indent=1) + "\n",
        README: readme(),
        ARCHITECTURE: architecture(),
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")
        print(file.relative_to(ROOT))
