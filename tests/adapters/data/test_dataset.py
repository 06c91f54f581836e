"""Where the raw data come from: a named source, a copy of UCI's file, an earlier download, UCI.

The synthetic cohort stands in only for whoever says so.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import logging
import lzma
import re
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from health_predict.adapters.contracts import built_in, built_in_synthetic, synthetic_of
from health_predict.adapters.data import dataset, download
from health_predict.adapters.data.dataset import RawData
from health_predict.adapters.storage import open_storage
from health_predict.core.data import csv_file
from health_predict.core.data.cohort import read_cohort, save_csv
from health_predict.core.data.sources import Source
from health_predict.errors import DataError, UnreachableError
from health_predict.settings import Settings
from tests.cohorts import synthesize
from tests.contracts import DIABETES, published_at


class Archive(ThreadingHTTPServer):
    """Serves one body at every path; can break off or refuse."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.body = b""
        self.break_after: list[int] = []  # bytes of each response before the connection breaks; then no more breaks
        self.status = 200
        self.lengths = True
        self.asked = 0  # requests

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/static/public/296/data.zip"


class _Handler(BaseHTTPRequestHandler):
    server: Archive

    def do_GET(self) -> None:
        self.server.asked += 1
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        rest = self.server.body
        self.send_response(200)
        if self.server.lengths:
            self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if self.server.break_after:
            rest = rest[: self.server.break_after.pop(0)]
        self.wfile.write(rest)

    def log_message(self, *args: object) -> None:
        """Silence."""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[Archive]:
    with Archive() as archive:
        thread = threading.Thread(target=archive.serve_forever, args=(0.02,))
        thread.start()
        yield archive
        archive.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def csv_bytes() -> bytes:
    # as if it were the real file: real numbers below the synthetic ones
    frame = synthesize(400, seed=9)
    frame["encounter_id"] = [str(1000 + row) for row in range(400)]
    return frame.to_csv(index=False, lineterminator="\n").encode()


@pytest.fixture(scope="module")
def sha256(csv_bytes: bytes) -> str:
    return hashlib.sha256(csv_bytes).hexdigest()


@pytest.fixture(autouse=True)
def small_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "synthetic_of", lambda *_: built_in_synthetic().model_copy(update={"rows": 500}))


def fetch(
    settings: Settings, console: Console | None = None, *, stand_in: bool = False, url: str = "", sha256: str = ""
) -> RawData:
    """The raw data of a contract that publishes them at an address of the test."""
    if url or sha256:
        settings = settings.model_copy(update={"contract": published_at(url, sha256)})
    return dataset.fetch(settings, console, stand_in=stand_in)


def zipped(data: bytes, name: str = "diabetic_data.csv") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("IDS_mapping.csv", "admission_type_id,description\n")
        archive.writestr(name, data)
    return buffer.getvalue()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


class TestDownload:
    def test_the_file_in_the_archive_is_kept_and_asked_for_once(
        self, server: Archive, tmp_path: Path, csv_bytes: bytes, sha256: str
    ) -> None:
        # given
        server.body = zipped(csv_bytes)
        settings = Settings(home=tmp_path)
        # when
        raw = fetch(settings, url=server.url, sha256=sha256)
        again = fetch(settings, url=server.url, sha256=sha256)
        # then
        assert raw == again and raw.path.read_bytes() == csv_bytes and raw.sha256 == sha256
        assert server.asked == 1 and files(tmp_path) == ["data.csv"]

    def test_a_folder_in_the_archive_does_not_matter(
        self, server: Archive, tmp_path: Path, csv_bytes: bytes, sha256: str
    ) -> None:
        server.body = zipped(csv_bytes, "dataset_diabetes/diabetic_data.csv")
        assert fetch(Settings(home=tmp_path), url=server.url, sha256=sha256).sha256 == sha256

    def test_what_breaks_off_begins_anew(self, server: Archive, tmp_path: Path, csv_bytes: bytes, sha256: str) -> None:
        server.body, server.break_after = zipped(csv_bytes), [1_000, 500]
        assert fetch(Settings(home=tmp_path), url=server.url, sha256=sha256).sha256 == sha256
        assert server.asked == 3

    def test_what_breaks_off_again_and_again_leaves_nothing(
        self, server: Archive, tmp_path: Path, csv_bytes: bytes, sha256: str
    ) -> None:
        server.body, server.break_after = zipped(csv_bytes), [2_000] * download.ATTEMPTS
        with pytest.raises(UnreachableError, match="broke off 3 times"):
            fetch(Settings(home=tmp_path), url=server.url, sha256=sha256)
        assert files(tmp_path) == []

    def test_a_company_s_own_certificate_counts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # given a file of certificates, and the system's
        own = tmp_path / "own.pem"
        own.write_bytes(b"")
        monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
        monkeypatch.setenv("SSL_CERT_FILE", str(own))
        assert download._certificates() == str(own)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(own))
        assert download._certificates() is True

    def test_a_body_of_unknown_length_ends_with_the_connection(
        self, server: Archive, tmp_path: Path, csv_bytes: bytes, sha256: str
    ) -> None:
        server.body, server.lengths = zipped(csv_bytes), False
        assert fetch(Settings(home=tmp_path), url=server.url, sha256=sha256).sha256 == sha256

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            pytest.param(lambda data: zipped(data + b"x"), "has SHA-256 .* removed", id="checksum"),
            pytest.param(lambda data: b"<html>sign in</html>", "has SHA-256 .* removed", id="html"),
            pytest.param(lambda data: zipped(data)[:-30], "truncated or damaged", id="truncated"),
            pytest.param(lambda data: zipped(data, "other.csv"), "holds no diabetic_data.csv", id="other file"),
            pytest.param(
                lambda data: zipped(data).replace(b"AfricanAmerican", b"AfricanBmerican", 1), "CRC", id="corrupt"
            ),
        ],
    )
    def test_a_wrong_download_is_refused_and_nothing_of_it_kept(
        self,
        body: Callable[[bytes], bytes],
        message: str,
        server: Archive,
        tmp_path: Path,
        csv_bytes: bytes,
        sha256: str,
    ) -> None:
        server.body = body(csv_bytes)
        with pytest.raises(DataError, match=message):
            fetch(Settings(home=tmp_path), url=server.url, sha256=sha256)
        assert files(tmp_path) == []

    def test_a_damaged_earlier_copy_is_downloaded_again(
        self, server: Archive, tmp_path: Path, csv_bytes: bytes, sha256: str
    ) -> None:
        server.body = zipped(csv_bytes)
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "diabetic_data.csv").write_bytes(csv_bytes[:-5])
        assert fetch(Settings(home=tmp_path), url=server.url, sha256=sha256).sha256 == sha256

    def test_progress_is_told_on_the_console(
        self, server: Archive, tmp_path: Path, csv_bytes: bytes, sha256: str
    ) -> None:
        server.body = zipped(csv_bytes)
        console = Console(file=io.StringIO(), width=200)
        fetch(Settings(home=tmp_path), console, url=server.url, sha256=sha256)
        size = f"{len(server.body) / 1e6:.1f}"
        said = console.file.getvalue()  # type: ignore[attr-defined]
        assert said.startswith("downloading http://127.0.0.1") and f"{size} of {size} MB" in said

    def test_a_home_that_cannot_be_made_is_named(self, server: Archive, tmp_path: Path, sha256: str) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(UnreachableError, match="is a file, where a folder has to be"):
            fetch(Settings(home=tmp_path / "file"), url=server.url, sha256=sha256)


class TestFallback:
    def test_without_network_the_synthetic_cohort_is_announced(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        # given a port on which nothing listens
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{probe.getsockname()[1]}/data.zip"
        # when
        with caplog.at_level(logging.WARNING):
            raw = fetch(Settings(home=tmp_path), stand_in=True, url=url)
        # then
        assert raw.source == Source.SYNTHETIC == "synthetic" and "SYNTHETIC DATA" in caplog.text
        assert len(read_cohort(raw.path, DIABETES)) == 500 and files(tmp_path) == [raw.path.name]
        # and the next time it is the same file
        assert fetch(Settings(home=tmp_path), stand_in=True, url=url) == raw

    @pytest.mark.parametrize("profile", ["local", "kind", "aws"])
    def test_without_network_nothing_stands_in_unasked(self, profile: str, tmp_path: Path, server: Archive) -> None:
        # given the settings of a pipeline, in a cluster or not, storage that answers, and a UCI that does not
        server.status = 503
        storage = (tmp_path / "storage").as_uri()
        settings = Settings(home=tmp_path, profile=profile, storage_uri=storage)  # type: ignore[arg-type]
        # when
        with pytest.raises(UnreachableError, match="does not answer") as caught:
            fetch(settings, url=server.url)
        # then both ways out are named, and nothing was made up
        assert "HEALTH_PREDICT_DATA_SOURCE=synthetic" in caught.value.remedy and "data_source=" in caught.value.remedy
        assert files(tmp_path) == []

    def test_a_server_that_refuses_counts_as_no_network(self, server: Archive, tmp_path: Path) -> None:
        server.status = 503
        console = Console(file=io.StringIO(), width=200)
        assert fetch(Settings(home=tmp_path), console, stand_in=True, url=server.url).source == "synthetic"
        assert "SYNTHETIC DATA" in console.file.getvalue()  # type: ignore[attr-defined]

    def test_a_checksum_in_the_settings_forbids_the_fallback(self, server: Archive, tmp_path: Path) -> None:
        server.status = 404
        with pytest.raises(DataError, match="as set"):
            fetch(Settings(home=tmp_path, data_sha256="0" * 64), stand_in=True, url=server.url)

    def test_it_can_be_asked_for(self, tmp_path: Path) -> None:
        assert fetch(Settings(home=tmp_path, data_source="synthetic")).source == "synthetic"


class TestCopy:
    """A copy of UCI's file is a default: taken instead of the download, and never instead of what is named."""

    def test_it_takes_the_place_of_the_download(
        self, server: Archive, tmp_path: Path, csv_bytes: bytes, sha256: str
    ) -> None:
        # given one that is packed
        (tmp_path / "copy.gz").write_bytes(gzip.compress(csv_bytes))
        settings = Settings(home=tmp_path / "home", data_copy=str(tmp_path / "copy.gz"))
        # then nothing is downloaded
        assert fetch(settings, url=server.url, sha256=sha256).sha256 == sha256 and server.asked == 0
        # and what is named goes before it
        (tmp_path / "mine.csv").write_bytes(csv_bytes + csv_bytes.splitlines(keepends=True)[1])
        named = settings.model_copy(update={"data_source": str(tmp_path / "mine.csv")})
        assert fetch(named, url=server.url, sha256=sha256).path == tmp_path / "mine.csv"

    def test_one_at_an_address_is_fetched_once(
        self, server: Archive, tmp_path: Path, csv_bytes: bytes, sha256: str
    ) -> None:
        server.body = csv_bytes
        settings = Settings(home=tmp_path, data_copy=server.url)
        assert fetch(settings, sha256=sha256) == fetch(settings, sha256=sha256) and server.asked == 1

    def test_one_that_is_another_file_is_refused(self, server: Archive, tmp_path: Path, csv_bytes: bytes) -> None:
        (tmp_path / "copy.csv").write_bytes(csv_bytes)
        for where, message in (
            ("copy.csv", "the copy of the published file has SHA-256"),
            ("none.csv", "does not exist"),
        ):
            with pytest.raises(DataError, match=message) as caught:
                fetch(Settings(home=tmp_path / "home", data_copy=str(tmp_path / where)), url=server.url)
            assert caught.value.remedy == "correct or unset HEALTH_PREDICT_DATA_COPY"


class TestNamedSource:
    @pytest.fixture
    def file(self, tmp_path: Path, csv_bytes: bytes) -> Path:
        path = tmp_path / "my data.csv"
        path.write_bytes(csv_bytes)
        return path

    def test_a_path_and_a_file_address_are_used_in_place(self, file: Path, tmp_path: Path, sha256: str) -> None:
        for where in (str(file), file.as_uri()):
            raw = fetch(Settings(home=tmp_path / "home", data_source=where))
            assert raw.path == file and raw.sha256 == sha256 and raw.source == Source.CUSTOM
        assert not (tmp_path / "home").exists()

    @pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zipped])
    def test_a_packed_file_is_unpacked_into_the_home(
        self, pack: Callable[[bytes], bytes], tmp_path: Path, csv_bytes: bytes, sha256: str
    ) -> None:
        packed = tmp_path / "packed"
        packed.write_bytes(pack(csv_bytes))
        raw = fetch(Settings(home=tmp_path / "home", data_source=str(packed)))
        assert raw.sha256 == sha256 and raw.path.is_relative_to(tmp_path / "home")
        assert files(tmp_path / "home") == [raw.path.name]

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            pytest.param(gzip.compress(b"x" * 9999)[:-12], "truncated or damaged", id="cut gzip"),
            pytest.param(b"\x1f\x8b\x08\x00" + b"?" * 40, "truncated or damaged", id="bad gzip"),
            pytest.param(b"PK\x03\x04" + b"?" * 40, "truncated or damaged", id="bad zip"),
            pytest.param(zipped(b"", "other.csv"), "holds no", id="zip of something else"),
        ],
    )
    def test_a_damaged_packed_file_leaves_nothing(self, data: bytes, message: str, tmp_path: Path) -> None:
        (tmp_path / "packed").write_bytes(data)
        with pytest.raises(DataError, match=message):
            fetch(Settings(home=tmp_path / "home", data_source=str(tmp_path / "packed")))
        assert files(tmp_path / "home") == []

    def test_what_does_not_exist_is_an_error_and_never_replaced(self, tmp_path: Path, server: Archive) -> None:
        for where, message in (
            (str(tmp_path / "none.csv"), "does not exist"),
            (str(tmp_path), "is a folder"),
            ("ftp://host/file", "not supported"),
        ):
            with pytest.raises(DataError, match=message):
                fetch(Settings(home=tmp_path / "home", data_source=where))
        server.status = 404
        with pytest.raises(UnreachableError, match="does not answer"):
            fetch(Settings(home=tmp_path / "home", data_source=server.url))
        assert files(tmp_path) == []

    def test_a_checksum_in_the_settings_must_match(self, file: Path, tmp_path: Path, sha256: str) -> None:
        fetch(Settings(home=tmp_path, data_source=str(file), data_sha256=sha256.upper()))
        with pytest.raises(DataError, match="as set"):
            fetch(Settings(home=tmp_path, data_source=str(file), data_sha256="0" * 64))
        assert file.is_file()

    def test_an_https_source_is_downloaded_and_with_a_checksum_only_once(
        self, server: Archive, tmp_path: Path, csv_bytes: bytes, sha256: str
    ) -> None:
        server.body = csv_bytes
        free = Settings(home=tmp_path, data_source=server.url)
        assert fetch(free).sha256 == fetch(free).sha256 == sha256 and server.asked == 2
        pinned = Settings(home=tmp_path, data_source=server.url, data_sha256=sha256)
        assert fetch(pinned).sha256 == sha256 and server.asked == 2
        with pytest.raises(DataError, match="as set"):
            fetch(Settings(home=tmp_path, data_source=server.url, data_sha256="0" * 64))
        assert files(tmp_path) == []

    def test_an_https_source_may_be_packed(
        self, server: Archive, tmp_path: Path, csv_bytes: bytes, sha256: str
    ) -> None:
        server.body = gzip.compress(csv_bytes)
        assert fetch(Settings(home=tmp_path, data_source=server.url)).sha256 == sha256
        assert len(files(tmp_path)) == 1

    def test_an_s3_source_is_downloaded(self, tmp_path: Path, csv_bytes: bytes, sha256: str, s3_endpoint: str) -> None:
        # given a file in an S3 service
        import boto3

        boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket="hospital")
        open_storage("s3://hospital", s3_endpoint).write("in/data.csv", csv_bytes)
        settings = Settings(home=tmp_path, data_source="s3://hospital/in/data.csv", s3_endpoint_url=s3_endpoint)
        # then
        assert fetch(settings).sha256 == sha256
        with pytest.raises(DataError, match="does not exist"):
            fetch(settings.model_copy(update={"data_source": "s3://hospital/none.csv"}))

    def test_generated_rows_are_recognised_under_any_name(self, tmp_path: Path) -> None:
        save_csv(synthesize(50, seed=1), tmp_path / "real.csv")
        assert fetch(Settings(home=tmp_path, data_source=str(tmp_path / "real.csv"))).source == "synthetic"

    def test_they_are_also_recognised_when_excel_saved_them(self, tmp_path: Path) -> None:
        file = tmp_path / "saved.csv"
        for end, mark in (("\r", ""), ("\r\n", "\ufeff")):
            text = mark + synthesize(50, seed=1).to_csv(index=False, lineterminator=end)
            file.write_bytes(text.encode())
            assert fetch(Settings(home=tmp_path, data_source=str(file))).source == "synthetic"

    @pytest.mark.parametrize(
        ("data", "message"), [(b"", "is empty"), (b"\xff\xfea\x00", "UTF-16"), (b"a;b\n", "semic")]
    )
    def test_a_file_that_is_no_csv_is_refused(self, data: bytes, message: str, tmp_path: Path) -> None:
        (tmp_path / "x.csv").write_bytes(data)
        with pytest.raises(DataError, match=f"x.csv .*{message}"):
            fetch(Settings(home=tmp_path, data_source=str(tmp_path / "x.csv")))

    @pytest.mark.parametrize("data", [b"a,b\n1,2\n", b"encounter_id\n"])
    def test_a_file_that_is_no_cohort_passes_to_the_contract(self, data: bytes, tmp_path: Path) -> None:
        (tmp_path / "x.csv").write_bytes(data)
        assert fetch(Settings(home=tmp_path, data_source=str(tmp_path / "x.csv"))).source == "custom"

    def test_the_real_file_is_known_as_such(self, real_data: Path, tmp_path: Path) -> None:
        raw = fetch(Settings(home=tmp_path, data_source=str(real_data)))
        assert raw.source == "uci" and DIABETES.published and raw.sha256 == DIABETES.published.sha256


def test_the_synthetic_file_is_named_by_what_made_it(tmp_path: Path) -> None:
    path = fetch(Settings(home=tmp_path, data_source="synthetic")).path
    made_of = rf"synthetic-1-{built_in().digest[:8]}-[0-9a-f]{{8}}-500-{dataset.SYNTHETIC_SEED}\.csv"
    assert re.fullmatch(made_of, path.name)
    assert pd.read_csv(path, dtype=str, keep_default_na=False).shape == (500, 50)


def test_a_contract_without_a_synthetic_cohort_has_no_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    without = built_in().model_copy(update={"synthetic": ""})
    monkeypatch.setattr(dataset, "contract_of", lambda _: without)
    monkeypatch.setattr(dataset, "synthetic_of", synthetic_of)
    # then
    with pytest.raises(DataError, match="has no synthetic cohort"):
        fetch(Settings(home=tmp_path, data_source="synthetic"))
    assert files(tmp_path) == []
    # and no number makes its rows synthetic
    save_csv(synthesize(50, seed=1), tmp_path / "theirs.csv")
    assert fetch(Settings(home=tmp_path, data_source=str(tmp_path / "theirs.csv"))).source == Source.CUSTOM


def test_a_download_without_an_end_is_refused(
    server: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_endpoint: str
) -> None:
    import boto3

    # given a server and a bucket that send more than a file may hold, the server without a word of its length
    monkeypatch.setattr(csv_file, "MOST_BYTES", 200_000)
    server.body, server.lengths = b"a,b\n" * 1_000_000, False
    bucket = boto3.client("s3", endpoint_url=s3_endpoint)
    bucket.create_bucket(Bucket="endless")
    bucket.put_object(Bucket="endless", Key="data.csv", Body=server.body)
    # then both are refused, once, and nothing of them is kept
    for source in (server.url, "s3://endless/data.csv"):
        settings = Settings(home=tmp_path / "home", data_source=source, s3_endpoint_url=s3_endpoint)
        with pytest.raises(DataError, match="holds more than 200,000 bytes"):
            dataset.fetch(settings)
    assert server.asked == 1
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
