"""YAML files that people write: read into a model, with every mistake named by its line. No pandas."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from health_predict.errors import DataError

Place = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


def read_yaml(
    text: str,
    name: object,
    model: type[Model],
    mistakes: Callable[[Model], Iterable[tuple[Place, str]]],
    *,
    begin: tuple[str, str],
    mend: str,
) -> Model:
    """The model in a file's text. `name` is what a message calls the file.

    `mistakes` finds what does not fit together, with its place. Raises DataError with the line of the first mistakes
    and the remedy `mend`; for a file that holds nothing of the kind, with the problem and the remedy of `begin`.
    """
    try:
        # This loader leaves all scalars text: YAML would make a truth value of the level No.
        loader = yaml.BaseLoader(text)
        tree = loader.get_single_node()
        data = loader.construct_document(tree) if tree is not None else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise DataError(
            f"{name}{where} is not valid YAML: {getattr(error, 'problem', None) or error}", "mend the line"
        ) from None
    if not isinstance(data, dict):
        problem, remedy = begin
        raise DataError(f"{name} {problem}", remedy)
    try:
        read = model.model_validate(data)
        wrong = [*_named_twice(tree), *mistakes(read)]
    except ValidationError as error:
        wrong = [(_place(item["loc"], data), _said(item["msg"])) for item in error.errors(include_url=False)]
    if wrong:
        shown = "; ".join(
            f"line {_line(tree, place)}, {'.'.join(map(str, place))}: {what}" for place, what in wrong[:3]
        )
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise DataError(f"{name}: {shown}{more}", mend)
    return read


def _place(loc: Place, data: Any) -> Place:
    """Where in the file a mistake is, from where pydantic found it: an item of what the file has as a mapping by its
    name."""
    place: list[str | int] = []
    for step in loc:
        if isinstance(step, int) and isinstance(data, Mapping):
            step = [*data][step]
        place.append(step)
        try:
            data = data[step]
        except (LookupError, TypeError):
            data = None
    return tuple(place)


# What pydantic says of a file, in words for whoever wrote it.
_WORDS = {
    "Value error, ": "",
    "Extra inputs are not permitted": "the word is unknown here",
    "Input should be a valid tuple": "must be a list: [one, another]",
    "Input should be a valid dictionary or instance of": "must be a mapping of words, as for a",
    "Input should be a valid dictionary": "must be a mapping of words",
    "Input should be a valid string": "must be one text",
    "Field required": "is required",
}


def _said(message: str) -> str:
    for pydantic, ours in _WORDS.items():
        message = message.replace(pydantic, ours)
    return message


def _line(node: Any, place: Place) -> int:
    """The line of the deepest part of `place` that the file has."""
    line = int(node.start_mark.line) + 1
    for step in place:
        if isinstance(node, yaml.MappingNode):
            found = next((pair for pair in node.value if pair[0].value == str(step)), None)
            if found is None:
                return line
            line, node = int(found[0].start_mark.line) + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = int(node.start_mark.line) + 1
        else:
            return line
    return line


def _named_twice(node: Any, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """Names that a mapping has more than once: YAML takes the last and says nothing."""
    seen = set()
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value in seen:
            yield (*place, key.value), "is written twice"
        seen.add(key.value)
        yield from _named_twice(value, (*place, key.value))
