"""Bodies that no honest client sends, made by a seed."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

from health_predict.adapters.contracts import built_in

EXAMPLE = built_in().request
Body = tuple[str, bytes, bytes]
"""Path, content type and body."""

NUMBERS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "1" * 400,
    "0.1e-400",
    "-0",
    "1e5",
    "00",
    "0x10",
    "9" * 5000,
)
ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1.5, 10**40, -(10**40), "", " ", "?", "\x00", "\ud800", "\u202e", "x" * 10_000),
    *(
        [],
        {},
        [[]],
        {"a": {}},
        [None],
        "250\n",
        "٢٥٠",
        "1e3",
        "'; DROP TABLE x; --",
        "${jndi:ldap://x}",
        "../../etc/passwd",
    ),
)


def bodies(count: int, seed: int) -> Iterator[Body]:
    """`count` bodies, the same for the same seed."""
    chance = random.Random(seed)
    for _ in range(count):
        path = "/predict/batch" if chance.random() < 0.3 else "/predict"
        body = chance.choice(KINDS)(chance)
        if path == "/predict/batch" and chance.random() < 0.7:
            body = b"[" + b",".join([json.dumps(EXAMPLE).encode(), body] * chance.randint(1, 4)) + b"]"
        kind = b"application/json" if chance.random() < 0.97 else chance.choice(TYPES)
        yield path, kind, body


TYPES = (
    b"application/x-pickle",
    b"text/plain",
    b"",
    b"application/json; charset=utf-16",
    b"multipart/form-data",
    b"\xff",
)


def _wrong_types(chance: random.Random) -> bytes:
    changed = {name: chance.choice(ODD) for name in chance.sample(list(EXAMPLE), chance.randint(1, 5))}
    return json.dumps({**EXAMPLE, **changed}).encode()


def _numbers(chance: random.Random) -> bytes:
    name = chance.choice(list(EXAMPLE))
    return json.dumps({**EXAMPLE, name: "@"}).replace('"@"', chance.choice(NUMBERS)).encode()


def _nested(chance: random.Random) -> bytes:
    depth = chance.choice((10, 200, 1000, 20_000))
    opening, closing = chance.choice(((b"[", b"]"), (b'{"a":', b"}")))
    inner = opening * depth + b"1" + closing * chance.choice((0, depth))
    return b'{"age":' + inner + b"}" if chance.random() < 0.5 else inner


def _duplicates(chance: random.Random) -> bytes:
    name = chance.choice(list(EXAMPLE))
    again = b"".join(b',"%b":%b' % (name.encode(), json.dumps(chance.choice(ODD)).encode()) for _ in range(50))
    return json.dumps(EXAMPLE).encode()[:-1] + again + b"}"


def _unknown(chance: random.Random) -> bytes:
    names = {
        f"{chance.choice(('x', '', '__class__', 'é', 'age '))}{number}": 1 for number in range(chance.randint(1, 300))
    }
    return json.dumps({**EXAMPLE, **names}).encode()


def _missing(chance: random.Random) -> bytes:
    kept = chance.sample(list(EXAMPLE), chance.randint(0, len(EXAMPLE) - 1))
    return json.dumps({name: EXAMPLE[name] for name in kept}).encode()


def _utf8(chance: random.Random) -> bytes:
    body = bytearray(json.dumps(EXAMPLE).encode())
    for _ in range(chance.randint(1, 4)):
        body[chance.randrange(len(body))] = chance.choice((0xFF, 0xC0, 0x80, 0xED, 0x00))
    return bytes(body)


def _truncated(chance: random.Random) -> bytes:
    body = json.dumps(EXAMPLE).encode()
    return body[: chance.randrange(len(body))]


def _flipped(chance: random.Random) -> bytes:
    body = bytearray(json.dumps(EXAMPLE).encode())
    for _ in range(chance.randint(1, 8)):
        body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
    return bytes(body)


def _noise(chance: random.Random) -> bytes:
    return chance.randbytes(chance.randint(0, 2000))


def _other_formats(chance: random.Random) -> bytes:
    text = json.dumps(EXAMPLE)
    return chance.choice(
        (
            pickle.dumps(EXAMPLE),
            text.encode("utf-16"),
            text.encode("utf-8-sig"),
            json.dumps(text).encode(),
            text.encode() + b"\n" + text.encode(),
            text.replace('"', "'").encode(),
            text.encode() + b"//",
            b"null",
            b"",
            b'"' + b"a" * 100_000 + b'"',
        )
    )


def _honest(chance: random.Random) -> bytes:
    return json.dumps(EXAMPLE).encode()


KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    *(_wrong_types, _numbers, _nested, _duplicates, _unknown, _missing, _utf8, _truncated, _flipped, _noise),
    *(_other_formats, _honest),
)
