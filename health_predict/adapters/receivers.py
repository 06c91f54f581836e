"""Who is told: addresses as `apprise` reads them, and a bare ARN of an SNS topic. They hold secrets: none is logged.

A receiver that does not answer holds nobody up: each has a thread of its own, and what is not done in time is left.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

SECONDS = 3.5  # for all receivers of one delivery together
_TOPIC = re.compile(r"arn:aws[a-z-]*:sns:([a-z0-9-]+):[0-9]{12}:[A-Za-z0-9_-]{1,256}(\.fifo)?")
_SUBJECT = 99  # characters that SNS takes of one


class Letter(NamedTuple):
    """What a receiver gets. `kind`: info, success, warning or failure."""

    title: str
    body: str
    kind: str


def send(letters: Sequence[tuple[str, Sequence[Letter]]]) -> list[int]:
    """Send each address its letters in their order; how many each took. One that fails gets no more of them."""
    ready = [(_receiver(address), some) for address, some in letters]
    end = time.monotonic() + SECONDS
    taken: list[list[Letter]] = [[] for _ in ready]

    def work(at: int) -> None:
        receiver, some = ready[at]
        for letter in some:
            if time.monotonic() > end or not _taken(receiver, letter):
                return
            taken[at].append(letter)

    threads = [threading.Thread(target=work, args=(at,), daemon=True) for at in range(len(ready))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return [len(some) for some in taken]


def masked(address: str) -> str:
    """An address without its secrets: its kind and the begin of it, as far as apprise shows that."""
    if _TOPIC.fullmatch(address):
        return address
    found = _apprise().Apprise.instantiate(address)
    if found is None:
        return "(no address that apprise reads)"
    shown = urlsplit(found.url(privacy=True))  # what follows the host may be a token, too
    return f"{shown.scheme}://{shown.netloc}"


def _apprise() -> Any:
    import apprise  # with all its services: a second

    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # it names addresses
    return apprise


def _receiver(address: str) -> Any:
    """What takes letters at this address; None where nothing does."""
    if topic := _TOPIC.fullmatch(address):
        import boto3
        from botocore.config import Config

        quick = Config(connect_timeout=2, read_timeout=2, retries={"total_max_attempts": 1})
        return boto3.session.Session().resource("sns", region_name=topic[1], config=quick).Topic(address)
    receiver = _apprise().Apprise()
    return receiver if receiver.add(address) else None


def _taken(receiver: Any, letter: Letter) -> bool:
    if receiver is None:
        return False
    try:
        if hasattr(receiver, "publish"):
            receiver.publish(Subject=letter.title[:_SUBJECT], Message=letter.body)
            return True
        done = receiver.notify(title=letter.title, body=letter.body, notify_type=letter.kind, body_format="text")
        return bool(done)
    except Exception:  # of any service: whatever it is, the letter was not taken
        return False
