"""Downloads from a local HTTP server that breaks off, ignores ranges and fails; archives that try to get out."""

import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from mtkernels.train.config import SettingError
from mtkernels.train.data import download as module
from mtkernels.train.data.download import KNOWN, Remote, download, extract, fetch

CONTENT = np.random.RandomState(0).bytes(300_000)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Server(ThreadingHTTPServer):
    """Serves CONTENT at every address; what goes wrong is set by its fields."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.break_after = []  # bytes that each next answer sends before the connection ends
        self.ranges = True
        self.status = None  # instead of an answer
        self.seen = []  # (path, Range) of each request

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.seen.append((self.path, asked))
        if self.server.status:
            self.send_error(self.server.status)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.ranges else None
        if start is not None and start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start or 0 :]
        self.send_response(200 if start is None else 206)
        self.send_header("Content-Length", str(len(body)))
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        self.wfile.write(body[: self.server.break_after.pop(0) if self.server.break_after else None])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as started:
        thread = threading.Thread(target=started.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield started
        started.shutdown()
        thread.join()


def get(server, path, **options):
    download(server.url, path, **{"checksum": SHA256, "pause": 0, "timeout": 10} | options)


def ranges(server):
    return [asked for _, asked in server.seen]


def test_whole(server, tmp_path):
    steps = []
    path = tmp_path / "new" / "file.bin"
    get(server, path, progress=lambda done, total: steps.append((done, total)))
    assert path.read_bytes() == CONTENT and ranges(server) == [None]
    assert steps[-1] == (len(CONTENT), len(CONTENT)) and steps == sorted(steps) and len(steps) > 1
    assert [each.name for each in path.parent.iterdir()] == ["file.bin"]


def test_a_file_that_is_there_is_checked_and_not_fetched(server, tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    get(server, path, checksum=f"md5:{hashlib.md5(CONTENT).hexdigest().upper()}")
    assert server.seen == []
    path.write_bytes(b"other")
    with pytest.raises(
        OSError, match=f"file.bin must have {SHA256.replace(':', ' ')}, got {'[0-9a-f]' * 64}: move"
    ):
        get(server, path)
    assert path.read_bytes() == b"other" and server.seen == []


def test_an_interrupted_download_goes_on_where_it_was(server, tmp_path):
    server.break_after = [70_000, 100_000]
    get(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=70000-", "bytes=170000-"]


def test_a_later_call_goes_on_too(server, tmp_path):
    path = tmp_path / "file.bin"
    server.break_after = [50_000] * 3
    with pytest.raises(
        OSError, match=r"3 attempts, 150000 bytes .*the connection ended after 150000 of 300000 bytes"
    ):
        get(server, path)
    assert not path.exists() and (tmp_path / "file.bin.part").read_bytes() == CONTENT[:150_000]
    server.seen.clear()
    get(server, path)
    assert path.read_bytes() == CONTENT and ranges(server) == ["bytes=150000-"]
    assert not (tmp_path / "file.bin.part").exists()


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    server.ranges, server.break_after = False, [70_000]
    get(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=70000-"]


def test_a_whole_part_needs_no_more_bytes(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    get(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT and ranges(server) == ["bytes=300000-"]


@pytest.mark.parametrize("part", [None, b"another file's first bytes", bytes(400_000)])
def test_a_wrong_checksum_leaves_nothing(server, tmp_path, part):
    wrong = "sha256:" + "0" * 64 if part is None else SHA256
    if part is not None:
        (tmp_path / "file.bin.part").write_bytes(part)
    with pytest.raises(
        OSError, match=r"file.bin.part must have sha256 \w{64}, got \w{64}: downloaded from http"
    ):
        get(server, tmp_path / "file.bin", checksum=wrong)
    assert list(tmp_path.iterdir()) == []
    get(server, tmp_path / "file.bin")


def test_a_refusal_is_not_tried_again_but_a_failure_is(server, tmp_path):
    server.status = 404
    with pytest.raises(OSError, match=r"http://127.0.0.1:\d+/file.bin: the server answered 404"):
        get(server, tmp_path / "file.bin")
    assert len(server.seen) == 1
    server.status = 503
    with pytest.raises(OSError, match=r"3 attempts, 0 bytes .*503"):
        get(server, tmp_path / "file.bin")
    assert len(server.seen) == 4 and list(tmp_path.iterdir()) == []


def test_no_server(tmp_path, server):
    server.shutdown()
    server.socket.close()
    with pytest.raises(OSError, match="3 attempts, 0 bytes"):
        get(server, tmp_path / "file.bin")


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://host/file", "/etc/hostname"])
def test_only_http(url, tmp_path):
    with pytest.raises(SettingError, match="must start with http:// or https://"):
        download(url, tmp_path / "file", checksum=SHA256)
    with pytest.raises(SettingError, match="a checksum must be sha256:HEX or md5:HEX, got 'crc:1'"):
        download("http://127.0.0.1", tmp_path / "file", checksum="crc:1")


def test_fetch_takes_all_files_of_a_dataset_from_a_mirror(server, tmp_path, monkeypatch):
    mirror = server.url.removesuffix("/file.bin") + "/mirror/"
    remotes = tuple(Remote(f"http://host.invalid/deep/{name}", SHA256) for name in ("a.mat", "b.mat"))
    monkeypatch.setitem(module.KNOWN, "two", remotes)
    assert fetch("two", tmp_path, base_url=mirror) == [tmp_path / "a.mat", tmp_path / "b.mat"]
    assert [path for path, _ in server.seen] == ["/mirror/a.mat", "/mirror/b.mat"]
    assert all(path.read_bytes() == CONTENT for path in tmp_path.iterdir())
    monkeypatch.setenv("MTKERNELS_DATA_URL", mirror)
    (tmp_path / "a.mat").unlink()
    fetch("two", tmp_path)
    assert [path for path, _ in server.seen][2:] == ["/mirror/a.mat"]
    with pytest.raises(SettingError, match=r"dataset must be one of cifar10, .* got 'imagenet'"):
        fetch("imagenet", tmp_path)


def test_known_files():
    assert set(KNOWN) == {"cifar10", "cifar100", "svhn", "svhn-extra"}
    remotes = [remote for each in KNOWN.values() for remote in each]
    assert len({remote.checksum for remote in remotes}) == 5
    assert all(remote.checksum.startswith("sha256:") and len(remote.checksum) == 71 for remote in remotes)


def tar_with(path, *infos):
    with tarfile.open(path, "w:gz") as tar:
        for info in infos:
            info.size = 4 if info.isreg() else 0
            tar.addfile(info, io.BytesIO(b"text"))
    return path


def info(name, kind=tarfile.REGTYPE, target=""):
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


def test_extract_tar_and_zip(tmp_path):
    tar_with(
        tmp_path / "a.tar.gz",
        info("./", tarfile.DIRTYPE),
        info("x"),
        info("d", tarfile.DIRTYPE),
        info("d/e/y"),
    )
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name, text in (("x", "text"), ("d/", ""), ("d/e/y", "text")):
            file.writestr(name, text)
    for name in ("a.tar.gz", "a.zip"):
        folder = tmp_path / f"from {name}"
        extract(tmp_path / name, folder)
        found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
        assert found == ["d", "d/e", "d/e/y", "x"] and (folder / "d/e/y").read_text() == "text"


@pytest.mark.parametrize(
    "name", ["../out", "a/../../out", "/tmp/out", "..", "a\\..\\..\\out", "C:\\out", "\\out"]
)
def test_members_that_lead_outside_are_refused_before_anything_is_written(name, tmp_path):
    tar = tar_with(tmp_path / "a.tar", info("first"), info(name))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("first", "text")
        file.writestr(name, "text")
    for archive in (tar, tmp_path / "a.zip"):
        with pytest.raises(SettingError, match=r"would be written outside .*: nothing unpacked"):
            extract(archive, tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "a.zip"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(kind, tmp_path):
    archive = tar_with(tmp_path / "a.tar", info("first"), info("link", kind, "first"), info("link/x"))
    with pytest.raises(SettingError, match="'link' is a link or a device: nothing unpacked"):
        extract(archive, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_links_in_zips_and_on_disk_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(link, "/tmp")
    with pytest.raises(SettingError, match="'link' is a link or a device"):
        extract(tmp_path / "a.zip", tmp_path / "folder")
    (tmp_path / "folder").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "folder" / "d").symlink_to(tmp_path / "outside")
    with pytest.raises(SettingError, match="'d/x' would be written outside"):
        extract(tar_with(tmp_path / "a.tar", info("d/x")), tmp_path / "folder")
    assert list((tmp_path / "outside").iterdir()) == []


def test_damaged_archives(tmp_path):
    archive = tar_with(tmp_path / "a.tar.gz", info("first"))
    whole = archive.read_bytes()
    for content in (b"", b"words", whole[: len(whole) // 2]):
        archive.write_bytes(content)
        with pytest.raises(SettingError, match=r"a\.tar\.gz is damaged, or neither \.zip nor \.tar"):
            extract(archive, tmp_path / "folder")
