"""One contract, two storages: a folder, and an S3 service."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from health_predict.adapters import files
from health_predict.adapters.files import disk_error, temporary_files, unpack_archive, whole_file, writable
from health_predict.adapters.storage import FolderStorage, S3Storage, Storage, open_storage
from health_predict.errors import DataError, SettingsError, StateError, UnreachableError


@pytest.fixture(params=["folder", "s3", "s3 without a prefix"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_storage((tmp_path / "a folder").as_uri())
    endpoint = request.getfixturevalue("s3_endpoint")
    import boto3

    bucket = f"bucket{abs(hash(request.node.nodeid))}"
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket)
    return open_storage(f"s3://{bucket}{'/some/prefix' if request.param == 's3' else ''}", endpoint)


def test_what_was_written_is_read_and_can_be_replaced(storage: Storage) -> None:
    storage.write("a/b.bin", b"\x00first")
    assert storage.read("a/b.bin") == b"\x00first"
    storage.write("a/b.bin", b"")
    assert storage.read("a/b.bin") == b"" and storage.exists("a/b.bin")


def test_of_two_who_write_at_once_one_is_told_so(storage: Storage) -> None:
    # given two who find nothing
    assert storage.tagged("a/turn") is None
    # then the first one writes, the second one does not
    assert [storage.exchange("a/turn", text, None) for text in (b"one", b"two")] == [True, False]
    # when both read that
    data, tag = storage.tagged("a/turn") or (b"", "")
    assert data == b"one"
    # then it is the same for a change
    assert [storage.exchange("a/turn", text, tag) for text in (b"three", b"four")] == [True, False]
    assert storage.read("a/turn") == b"three" and storage.keys("") == ["a/turn"]


def test_an_absent_key_is_a_state_error_and_leaves_no_file(storage: Storage, tmp_path: Path) -> None:
    assert not storage.exists("a/none")
    with pytest.raises(StateError, match="a/none does not exist"):
        storage.read("a/none")
    with pytest.raises(StateError, match="a/none does not exist"):
        storage.download("a/none", tmp_path / "out" / "file")
    assert not list(tmp_path.rglob("*file*"))


def test_files_go_up_and_down_whole(storage: Storage, tmp_path: Path) -> None:
    # given
    source = tmp_path / "source.bin"
    source.write_bytes(os.urandom(300_000))
    # when
    storage.upload(source, "raw/x/data.bin")
    storage.download("raw/x/data.bin", tmp_path / "deep" / "er" / "copy.bin")
    # then
    assert (tmp_path / "deep" / "er" / "copy.bin").read_bytes() == source.read_bytes()
    assert [file.name for file in (tmp_path / "deep" / "er").iterdir()] == ["copy.bin"]


def test_keys_are_sorted_and_filtered_by_prefix(storage: Storage) -> None:
    assert storage.keys("a/") == []
    for key in ("b/1", "a/2", "a/10", "ab/3"):
        storage.write(key, b"")
    assert storage.keys("a/") == ["a/10", "a/2"]
    assert storage.keys("a") == ["a/10", "a/2", "ab/3"]
    assert storage.keys("") == ["a/10", "a/2", "ab/3", "b/1"]


def test_more_keys_than_a_page_of_s3_are_all_listed(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # given pages of three keys
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    storage = S3Storage("many", "p", s3_endpoint)
    storage._client.create_bucket(Bucket="many")
    for number in range(10):
        storage.write(f"k/{number}", b"")
    # then
    assert len(storage._client.list_objects_v2(Bucket="many")["Contents"]) == 3
    assert storage.keys("k/") == [f"k/{number}" for number in range(10)]


def test_an_address_names_the_key(storage: Storage) -> None:
    assert storage.uri("a/b.bin").startswith(("file:///", "s3://bucket")) and storage.uri("a/b.bin").endswith("a/b.bin")


def test_a_missing_bucket_and_a_dead_endpoint_are_named(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreachableError, match=r"s3://none/x.*bucket"):
        open_storage("s3://none", s3_endpoint).write("x", b"")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UnreachableError, match="S3_ENDPOINT_URL"):
        open_storage("s3://none", "http://127.0.0.1:9").read("x")


def test_a_folder_writes_no_key_outside_itself(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leaves the storage folder"):
        FolderStorage(tmp_path / "inner").write("../outer", b"")
    assert not (tmp_path / "outer").exists()


def test_an_unfinished_write_is_no_key(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    storage.write("a/whole", b"x")
    (tmp_path / "a" / ".cut.123.abcd.part").write_bytes(b"x")
    assert storage.keys("") == ["a/whole"]


@pytest.mark.parametrize("uri", ["ftp://host/x", "/plain/path", "s3:///no-bucket", ""])
def test_other_addresses_are_refused(uri: str) -> None:
    with pytest.raises(SettingsError, match="not supported"):
        open_storage(uri)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    # given
    path = tmp_path / "file"
    path.write_bytes(b"old")
    # when writing fails half-way
    with pytest.raises(ValueError, match="half-way"), whole_file(path) as temporary:
        temporary.write_bytes(b"ne")
        raise ValueError("half-way")
    # then the old content stands alone
    assert path.read_bytes() == b"old" and [file.name for file in tmp_path.iterdir()] == ["file"]


def test_what_a_disk_refuses_is_said_with_a_remedy(tmp_path: Path) -> None:
    for code, message in ((28, "no space left"), (122, "no space left"), (13, "not writable"), (30, "not writable")):
        error = disk_error(OSError(code, ""), tmp_path)
        assert isinstance(error, UnreachableError) and message in error.problem and error.remedy
    other = OSError(5, "input/output")
    assert disk_error(other, tmp_path) is other


WRITERS: list[Callable[[FolderStorage, str, Path], object]] = [
    lambda storage, key, source: storage.write(key, b"x"),
    lambda storage, key, source: storage.upload(source, key),
]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("key", ["b", "a/b"])
def test_a_file_where_a_folder_should_be_is_an_expected_error(
    key: str, write: Callable[[FolderStorage, str, Path], object], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    with pytest.raises(UnreachableError, match="is a file, where a folder has to be -> move it away"):
        write(FolderStorage(source), key, source)
    assert source.read_bytes() == b"x"


def test_a_link_to_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    # given a home on a disk that is not mounted
    home = tmp_path / "home"
    home.symlink_to(tmp_path / "disk" / "home")
    with pytest.raises(UnreachableError, match=f"{home} leads to a folder that is not there -> make that folder"):
        writable(home / "runs")


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    # given a part of a process that is gone, and one of a process that still writes
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / f".report.html.{gone.pid}.abcd.part"
    busy = tmp_path / f".report.html.{os.getpid()}.abcd.part"
    left.write_text("half")
    busy.write_text("half")
    # when the file is written
    with whole_file(tmp_path / "report.html") as temporary:
        temporary.write_text("whole")
    # then only the first part is gone
    assert sorted(path.name for path in tmp_path.iterdir()) == [busy.name, "report.html"]


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside"])
@pytest.mark.parametrize("python", ["now", "before 3.11.4"])
def test_an_archive_cannot_write_outside_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, python: str
) -> None:
    if python != "now":
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises(tarfile.TarError, match="outside"):
        unpack_archive(tmp_path / "a.tar", tmp_path / "in" / "here")
    assert not list(tmp_path.rglob("outside"))


def test_an_archive_that_would_fill_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given an archive of a few bytes with a sparse file of a terabyte, and one with more than may be unpacked
    with (tmp_path / "large").open("wb") as large:
        large.truncate(1 << 40)
    subprocess.run(["tar", "--sparse", "-cf", "sparse.tar", "large"], cwd=tmp_path, check=True)
    with tarfile.open(tmp_path / "much.tar", "w") as tar:
        for number in range(3):
            entry = tarfile.TarInfo(f"{number}")
            entry.size = 500
            tar.addfile(entry, io.BytesIO(bytes(500)))
    monkeypatch.setattr(files, "MOST_UNPACKED", 1400)
    assert (tmp_path / "sparse.tar").stat().st_size < 100_000
    # then neither is unpacked
    for name, problem in (("sparse.tar", "no plain file"), ("much.tar", "more than 1,400 bytes")):
        with pytest.raises(tarfile.TarError, match=problem):
            unpack_archive(tmp_path / name, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_a_file_that_a_person_named_gets_a_remedy_of_its_own(tmp_path: Path) -> None:
    # given names that cannot be written: a folder's, and one below a file
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "out.csv"):
        # then the remedy is about that name, and not about the home
        with pytest.raises(UnreachableError, match="name another file"), whole_file(path, "name another file") as part:
            part.write_text("x")


def test_temporary_files_lie_in_the_home_and_go_with_their_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a process that was killed in the middle
    program = (
        "import os, pathlib, signal, tempfile\nfrom health_predict.adapters.files import temporary_files\n"
        "with temporary_files(pathlib.Path('.')): tempfile.mkdtemp(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert subprocess.run([sys.executable, "-c", program], cwd=tmp_path).returncode < 0
    [left] = (tmp_path / "tmp").iterdir()
    # when another begins
    with temporary_files(tmp_path):
        # then what is left is gone, and its own lie there, too, as do those of what it starts
        assert not left.exists()
        assert Path(tempfile.gettempdir()).parent == tmp_path / "tmp" == Path(os.environ["TMPDIR"]).parent
        tempfile.mkdtemp()
    # and nothing stays
    assert list((tmp_path / "tmp").iterdir()) == [] and os.environ["TMPDIR"] == str(tmp_path)
