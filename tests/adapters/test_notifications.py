"""Messages: left by stages, delivered where a command ends, to real receivers on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import boto3
import pytest
from aiosmtpd.controller import Controller
from pydantic import SecretStr

from health_predict.adapters import receivers
from health_predict.adapters.notifications import Event, deliver, tell, try_out, undelivered
from health_predict.adapters.storage import open_storage
from health_predict.settings import Settings
from tests.receivers import Webhook, webhook
from tests.shell import free_port


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Messages need no MLflow."""
    return Settings(home=tmp_path / "home")


@pytest.fixture
def one() -> Iterator[Webhook]:
    with webhook() as found:
        yield found


@pytest.fixture
def two() -> Iterator[Webhook]:
    with webhook() as found:
        yield found


def telling(settings: Settings, *addresses: str) -> Settings:
    return settings.model_copy(update={"notify": tuple(SecretStr(address) for address in addresses)})


def told(settings: Settings, number: int = 0, event: Event = Event.DRIFT) -> None:
    tell(settings, event, f"batch {number}", f"Batch {number} is not what it was.", f"`health-predict {number}`")


def told_again_and_again(settings: Settings) -> None:
    """By a stage that is repeated before the delivery and after it."""
    told(settings)
    told(settings)
    deliver(settings)
    told(settings)
    deliver(settings)


def test_an_event_is_told_once_however_often_its_stage_is_repeated(settings: Settings, one: Webhook) -> None:
    # given a stage that was killed after it told something, and repeated, before the delivery and after it
    settings = telling(settings, one.address)
    told_again_and_again(settings)
    # then there is one message, with the reason and what to do
    (letter,) = one.letters
    assert (letter["title"], letter["type"]) == ("health-predict: drift alarm", "warning")
    assert letter["message"] == "Batch 0 is not what it was.\n\nNext: `health-predict 0`"
    # and another event is another message
    told(settings, 1)
    told(settings, 1, Event.REFUSED)
    deliver(settings)
    assert one.titles == ["drift alarm", "drift alarm", "challenger refused"]
    assert undelivered(settings) == []


def test_nothing_is_kept_where_nobody_is_told_nor_of_a_simulation(settings: Settings, one: Webhook) -> None:
    told(settings)
    told(telling(settings, one.address).model_copy(update={"stream": "sim-winter"}))
    deliver(settings)
    assert open_storage(settings.storage).keys("") == []


def test_one_that_is_away_neither_holds_up_the_others_nor_has_them_told_twice(
    settings: Settings, one: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    # given two receivers, one of which does not run yet
    port = free_port()
    settings = telling(settings, f"json://127.0.0.1:{port}", one.address)
    # when messages are delivered twice
    told(settings, 0)
    deliver(settings)
    told(settings, 1)
    deliver(settings)
    # then the other has each once, and what is kept is said, in one line
    assert len(one.letters) == 2
    assert [message.reason[:7] for message in undelivered(settings)] == ["Batch 0", "Batch 1"]
    assert [line.split(":")[0] for line in caplog.messages] == [
        "1 message not taken by every address, kept and sent again the next time",
        "2 messages not taken by every address, kept and sent again the next time",
    ]
    # when it comes back, then it gets all of them in their order, each once
    with webhook(port) as back:
        deliver(settings)
        deliver(settings)
        assert [letter["message"][:7] for letter in back.letters] == ["Batch 0", "Batch 1"]
    assert len(one.letters) == 2
    assert undelivered(settings) == []


def test_one_that_refuses_is_asked_again(settings: Settings, one: Webhook) -> None:
    settings = telling(settings, one.address)
    one.status = 503
    told(settings)
    deliver(settings)
    assert len(undelivered(settings)) == 1
    one.status = 200
    deliver(settings)
    assert one.titles == ["drift alarm"] and undelivered(settings) == []


def test_receivers_that_hang_cost_seconds_together(settings: Settings, one: Webhook, two: Webhook) -> None:
    # given two receivers that take a connection and never answer, and one that is well
    one.open.clear()
    with webhook() as third, webhook() as well:
        third.open.clear()
        settings = telling(settings, one.address, third.address, well.address)
        receivers.masked(two.address)  # what delivers is imported
        for number in range(5):
            told(settings, number)
        # when five messages are delivered
        begin = time.monotonic()
        deliver(settings)
        # then it is over within five seconds, and the third has them all
        assert time.monotonic() - begin < 5
        assert len(well.letters) == 5
        third.open.set()
    assert len(undelivered(settings)) == 5


def test_what_cannot_be_kept_is_sent_at_once(settings: Settings, one: Webhook) -> None:
    # given a storage that takes nothing
    settings.home.mkdir()
    (settings.home / "storage").write_text("a file where the folder should be")
    # when something is told, and delivered
    settings = telling(settings, one.address)
    told(settings, 0, Event.BACKUP)
    deliver(settings)
    # then it arrived, and nothing was raised
    assert one.titles == ["backup failed"]


def test_no_secret_of_an_address_is_shown_or_stored(
    settings: Settings, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    # given addresses with secrets, of which nobody answers
    secrets = ("hunter2", "wh00k")
    addresses = (f"mailto://me:{secrets[0]}@localhost:9?to=you@example.org", f"json://127.0.0.1:9/{secrets[1]}")
    settings = telling(settings, *addresses)
    # when something is told, delivered, and tried out
    told(settings)
    deliver(settings)
    tried = try_out(settings)
    # then no secret is in what was said, in what is stored, or in how settings show themselves
    assert [taken for _, taken in tried] == [False] * 2
    assert tried[0][0] == "mailto://me:****@localhost:9"
    stored = b"".join(file.read_bytes() for file in settings.home.rglob("*") if file.is_file())
    shown = f"{caplog.text} {capfd.readouterr()} {tried} {settings!r} {settings.model_dump_json()}"
    for secret in secrets:
        assert secret not in shown
        assert secret.encode() not in stored
    slack = "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#here"
    assert receivers.masked(slack) == "slack://T...2"
    # but a task gets them
    assert json.loads(settings.environment()["HEALTH_PREDICT_NOTIFY"]) == [*addresses]


def test_mail(settings: Settings) -> None:
    # given a mail server
    class Post:
        def __init__(self) -> None:
            self.mails: list[Any] = []

        async def handle_DATA(self, _: object, session: object, envelope: Any) -> str:
            self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
            return "250 taken"

    post, port = Post(), free_port()
    server = Controller(post, hostname="127.0.0.1", port=port)
    server.start()
    try:
        # when something is told by mail
        address = f"mailto://127.0.0.1:{port}?from=model@hospital.example&to=ward@hospital.example"
        settings = telling(settings, address)
        told(settings, 3, Event.FAILED)
        deliver(settings)
    finally:
        server.stop()
    # then a mail says it
    (mail,) = post.mails
    assert mail["Subject"] == "health-predict: run failed"
    assert "ward@hospital.example" in mail["To"]
    assert "Batch 3 is not what it was." in mail.get_body(("plain", "html")).get_content()


def test_a_topic_of_amazon(settings: Settings, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a topic whose messages go to a queue, and credentials around
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    topic = boto3.client("sns").create_topic(Name="health-predict")["TopicArn"]
    queues = boto3.client("sqs")
    queue = queues.create_queue(QueueName="seen")["QueueUrl"]
    arn = queues.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    boto3.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    # when something is told to it, and to one that does not exist
    there = telling(settings, topic)
    told(there)
    deliver(there)
    gone = telling(settings, f"{topic}-gone")
    told(gone, 1)
    deliver(gone)
    # then the first got it, and for the other it is kept
    (seen,) = queues.receive_message(QueueUrl=queue, MaxNumberOfMessages=10)["Messages"]
    body = json.loads(seen["Body"])
    assert (body["Subject"], body["Message"][:7]) == ("health-predict: drift alarm", "Batch 0")
    assert [message.reason[:7] for message in undelivered(gone)] == ["Batch 1"]
    assert try_out(there) == [(topic, True)]


def test_delivery_in_an_s3_bucket(tmp_path: Path, s3_endpoint: str, one: Webhook) -> None:
    # given messages that lie in a bucket
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket="messages")
    settings = Settings(home=tmp_path, storage_uri="s3://messages/here", s3_endpoint_url=s3_endpoint)
    settings = telling(settings, one.address)
    # when one is told twice, delivered, and told again
    told_again_and_again(settings)
    # then it came once
    assert len(one.letters) == 1
    (key,) = open_storage(settings.storage, s3_endpoint).keys("notifications/")
    assert key.startswith("notifications/sent/")
