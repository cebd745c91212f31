"""Archives from servers on this machine's loopback, and from the reader's own places. Nothing here asks the network."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from torchvision import datasets

from toy_ijepa import download, fetch
from toy_ijepa.data import load
from toy_ijepa.folders import DataError, cache_root

BODY = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(BODY).hexdigest()
NAME = datasets.CIFAR10.filename


class Server(ThreadingHTTPServer):
    """Sends `body` from where a Range asks, or misbehaves as told; what it was asked and how much it sent is kept."""

    block_on_close = False
    ranges = True  # whether it knows Range
    length = True  # whether it says how much comes
    cut = None  # hang up after so many bytes of an answer
    stall = False  # fall silent there instead
    rate = None  # bytes a second, after a first burst
    burst = 0  # bytes
    drip = 0  # seconds of a first line that does not end
    status = None  # an error to answer with
    to = None  # where to redirect
    told: dict = {}  # noqa: RUF012  more header fields

    def __init__(self, body=BODY, **behaviour):
        super().__init__(("127.0.0.1", 0), Handler)
        assert all(hasattr(self, name) for name in behaviour), behaviour
        vars(self).update(behaviour, body=body, asked=[], paths=[], sent=0, over=threading.Event())
        threading.Thread(target=self.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{NAME}"

    def handle_error(self, *_) -> None:
        """A client that hangs up is what these tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_) -> None: ...

    def do_GET(self) -> None:
        s, wanted = self.server, self.headers["Range"]
        s.asked.append(wanted)
        s.paths.append(self.path)
        for _ in range(10 * s.drip):
            self.wfile.write(b"x")
            if s.over.wait(0.1):
                return
        first = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and s.ranges else 0
        status = s.status or (302 if s.to else 416 if first >= len(s.body) else 206 if first else 200)
        self.send_response(status)
        if s.to:
            self.send_header("Location", s.to)
        if status == 206 and "Content-Range" not in s.told:
            self.send_header("Content-Range", f"bytes {first}-{len(s.body) - 1}/{len(s.body)}")
        body = s.body[first:] if status in (200, 206) else b""
        if s.length:
            self.send_header("Content-Length", str(len(body)))
        for key, value in s.told.items():
            self.send_header(key, value)
        self.end_headers()
        self.send(body[: s.cut])

    def send(self, body: bytes) -> None:
        s, start = self.server, 0
        while start < len(body):
            end = len(body) if s.rate is None else max(start + s.rate // 50, s.burst)
            s.sent += len(body[start:end])  # before the client has it and looks
            self.wfile.write(body[start:end])
            start = end
            if s.rate and s.over.wait(0.02):
                return
        if s.stall:
            s.over.wait(30)


@pytest.fixture
def serve():
    """Start servers with `serve(...)`; all are stopped in the end."""
    started = []

    def start(*args, **kwargs) -> Server:
        started.append(Server(*args, **kwargs))
        return started[-1]

    yield start
    for server in started:
        server.over.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """A home and a current folder of their own, no mirror, no proxy, and little patience."""
    for folder in ("home/Downloads", "here"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("IJEPA_WAIT")
    monkeypatch.setattr(fetch, "MIRRORS", {})
    monkeypatch.setattr(fetch, "WAIT", 100.0)
    monkeypatch.setattr(download, "GRACE", 0.2)
    monkeypatch.setattr(download, "STALL", 5.0)
    monkeypatch.setattr(download, "BLOCK", 10_000)


@pytest.fixture
def hasty(monkeypatch):
    """No patience with silent servers."""
    monkeypatch.setattr(download, "STALL", 1.0)


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / NAME


@pytest.fixture
def cifar(monkeypatch) -> bytes:
    """A whole archive in CIFAR-10's own format, with two pictures a split, for torchvision's own class."""
    packed, listed = io.BytesIO(), {}
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3072), dtype=np.uint8)
    contents = {
        "data_batch_1": {"data": pixels, "labels": [3, 1]},
        "test_batch": {"data": pixels, "labels": [0, 2]},
        "batches.meta": {"label_names": ["a", "b", "c", "d"]},
    }
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in contents.items():
            data = pickle.dumps(content)
            about = tarfile.TarInfo(f"{datasets.CIFAR10.base_folder}/{name}")
            about.size, listed[name] = len(data), hashlib.md5(data).hexdigest()
            tar.addfile(about, io.BytesIO(data))
    meta = {"filename": "batches.meta", "key": "label_names", "md5": listed.pop("batches.meta")}
    train, test = ([list(item)] for item in listed.items())
    own = dict(train_list=train, test_list=test, meta=meta, tgz_md5=hashlib.md5(packed.getvalue()).hexdigest())
    for name, value in (own | dict(url="http://127.0.0.1:9/nobody-listens-here")).items():
        monkeypatch.setattr(datasets.CIFAR10, name, value)
    return packed.getvalue()


def get(target: Path, *servers: Server, wait: float = 100.0) -> None:
    download.download([server.url for server in servers], target, MD5, wait)


def part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def archive() -> Path:
    return cache_root() / "downloads" / NAME


def test_a_whole_download(serve, target, capsys):
    server = serve()
    get(target, server, serve())
    assert target.read_bytes() == BODY
    assert server.asked == [None]
    assert not part(target).exists()
    told = capsys.readouterr().err
    assert f"{target} is not here yet: servers have 100 s" in told
    assert re.search(r"127.0.0.1:\d+: 100%.*300k/300k.*B/s", told)


@pytest.mark.parametrize("how", ["cut", "stall"])
def test_a_second_server_sends_only_the_rest(how, hasty, serve, target, capsys):
    first, second = serve(cut=100_000, stall=how == "stall"), serve()
    get(target, first, second)
    assert target.read_bytes() == BODY
    assert (second.asked, second.sent) == (["bytes=100000-"], 200_000)
    assert {"cut": "broke off at 100000 of 300000", "stall": "timed out"}[how] in capsys.readouterr().err


def test_a_server_without_ranges_starts_anew_and_loses_nothing(serve, target):
    part(target).write_bytes(BODY[:200_000])
    short, whole = serve(ranges=False, cut=50_000), serve(ranges=False)
    with pytest.raises(DataError, match="broke off at 50000"):
        get(target, short)
    assert part(target).read_bytes() == BODY[:200_000]
    get(target, whole)
    assert (whole.sent, target.read_bytes()) == (300_000, BODY)


def test_wrong_bytes_are_thrown_away_and_the_next_server_starts_from_zero(serve, target, capsys):
    wrong, right = serve(bytes(250_000)), serve()
    get(target, wrong, right)
    assert target.read_bytes() == BODY
    assert right.asked == [None]
    assert "wrong checksum" in capsys.readouterr().err


def test_wrong_bytes_never_get_the_archives_name(serve, target):
    target.write_bytes(b"an older wrong one")
    with pytest.raises(DataError, match=r"wrong checksum.*0.00B are kept"):
        get(target, serve(bytes(300_000)))
    assert target.read_bytes() == b"an older wrong one"
    assert not part(target).exists()


def test_a_right_server_that_ends_what_a_wrong_one_began_is_asked_again(serve, target):
    wrong, right = serve(bytes(300_000), cut=100_000), serve()
    get(target, wrong, right)
    assert target.read_bytes() == BODY
    assert right.asked == ["bytes=100000-", None]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(("kept", "asked"), [(BODY, 1), (bytes(300_000), 2), (bytes(400_000), 2)])
def test_nothing_more_to_send(ranges, kept, asked, serve, target):
    """A part as long as the archive, or longer: it is whole (a run was ended while it was checked), or thrown away."""
    part(target).write_bytes(kept)
    server = serve(ranges=ranges)
    get(target, server)
    assert target.read_bytes() == BODY
    assert server.asked == [f"bytes={len(kept)}-", None][:asked]


def test_a_slow_server_is_left_for_a_fast_one(serve, target, capsys):
    slow, fast = serve(rate=20_000), serve()
    begun = time.monotonic()
    get(target, slow, fast, wait=8.0)
    assert time.monotonic() - begun < 10  # the slow one alone takes 15
    assert target.read_bytes() == BODY
    kept = int(fast.asked[0].removeprefix("bytes=").removesuffix("-"))
    assert 0 < kept <= slow.sent
    assert fast.sent == 300_000 - kept
    assert re.search(r"too slow, [\d.]+kB/s: \d+ s more", capsys.readouterr().err)


def test_all_slow_says_so_in_time_and_the_next_call_goes_on(serve, target):
    slow, slower = serve(rate=100_000), serve(rate=20_000)
    begun = time.monotonic()
    with pytest.raises(DataError) as failure:
        get(target, slow, slower, wait=1.0)
    assert time.monotonic() - begun < 8
    told = str(failure.value)
    assert told.count("127.0.0.1:") == told.count("too slow, ") == told.count("kB/s") == 2
    for words in (f"no server had {NAME} within 1 s", "IJEPA_WAIT=3600", "IJEPA_MIRROR=", str(target.parent), "shapes"):
        assert words in told
    kept = part(target).read_bytes()
    assert 0 < len(kept) < len(BODY)
    assert BODY.startswith(kept)
    get(target, slow, wait=60)
    assert slow.asked[1] == f"bytes={len(kept)}-"
    assert target.read_bytes() == BODY


def test_a_rate_that_falls_is_noticed(serve, target):
    """Nearly all at once and then byte by byte, so that no read ever times out; on the whole it is still fast."""
    server, other = serve(rate=50, burst=290_000), serve()
    begun = time.monotonic()
    get(target, server, other)
    assert time.monotonic() - begun < 10
    assert int(re.search(r"\d+", other.asked[0])[0]) >= 290_000


def test_a_wait_shorter_than_the_first_judgement(serve, target, monkeypatch):
    monkeypatch.setattr(download, "GRACE", 60.0)
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"too slow, [\d.]+B/s"):
        get(target, serve(rate=500), serve(), wait=0.5)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (dict(status=404), "HTTP Error 404"),
        (dict(status=416), "HTTP Error 416"),
        (dict(cut=0, stall=True), "timed out"),
        (dict(drip=20), "no answer|timed out"),
        (dict(told={"Content-Type": "text/html"}), "sent a web page"),
        (dict(to="http://127.0.0.1:9/"), "refused"),
        (dict(to="file:///etc/hostname"), "HTTP Error 302"),
        (dict(status=206, told={"Content-Range": "bytes 7-99/100"}), "when asked for bytes from 0"),
    ],
)
def test_what_a_server_may_do_instead(behaviour, words, hasty, serve, target):
    begun = time.monotonic()
    with pytest.raises(DataError, match=words):
        get(target, serve(**behaviour))
    assert time.monotonic() - begun < 10


def test_no_server_at_all_and_addresses_that_are_none(target):
    with pytest.raises(DataError, match=r"Connection refused.*; \[bad: .*; a b: "):
        download.download(["http://127.0.0.1:9/x", "http://[bad/x", "http://a b/x"], target, MD5, 5.0)


def test_a_name_that_is_looked_up_for_ever(hasty, serve, target, monkeypatch):
    monkeypatch.setattr(download, "urlopen", lambda *_args, **_options: time.sleep(20))
    begun = time.monotonic()
    with pytest.raises(DataError, match="no answer"):
        get(target, serve())
    assert time.monotonic() - begun < 10


def test_redirects_keep_the_range(serve, target):
    part(target).write_bytes(BODY[:1000])
    end = serve()
    get(target, serve(to=end.url))
    assert end.asked == ["bytes=1000-"]
    assert target.read_bytes() == BODY


def test_a_server_that_does_not_say_how_much_comes(serve, target):
    get(target, serve(length=False))
    assert target.read_bytes() == BODY


def test_ctrl_c_keeps_what_is_there(serve, target, monkeypatch):
    blocks = []

    def press(got: int, *_) -> None:
        blocks.append(got)
        if len(blocks) == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(download, "GRACE", -1.0)  # every block is judged
    monkeypatch.setattr(download, "judge", press)
    with pytest.raises(KeyboardInterrupt):
        get(target, serve())
    kept = part(target).read_bytes()
    assert 0 < len(kept) < len(BODY)
    assert BODY.startswith(kept)
    monkeypatch.setattr(download, "judge", lambda *_: None)
    again = serve()
    get(target, again)
    assert (again.asked, target.read_bytes()) == ([f"bytes={len(kept)}-"], BODY)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_not_the_servers_fault(cifar, serve, monkeypatch):
    first, second = serve(cifar), serve(cifar)
    monkeypatch.setattr(fetch, "MIRRORS", {"cifar10": (first.url, second.url)})
    archive().parent.mkdir(parents=True)
    part(archive()).symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"disk of .*downloads is full before cifar10 .* IJEPA_CACHE"):
        load("cifar10")
    assert (len(first.asked), second.asked) == (1, [])


def test_a_disk_that_fails_otherwise_is_not_the_servers_fault_either(serve, target):
    part(target).mkdir()
    with pytest.raises(IsADirectoryError):
        get(target, serve())


def test_from_a_server_through_torchvision_to_pictures(cifar, serve, monkeypatch):
    broken, own = serve(status=503), serve(cifar)
    monkeypatch.setattr(fetch, "MIRRORS", {"cifar10": (broken.url,), "cifar100": ("http://127.0.0.1:9/",)})
    monkeypatch.setattr(datasets.CIFAR10, "url", own.url)
    train, test = load("cifar10"), load("cifar10", "test", image_size=16)
    assert (train.images.shape, test.images.shape) == ((2, 3, 32, 32), (2, 3, 16, 16))
    assert (train.labels.tolist(), test.labels.tolist(), train.classes) == ([3, 1], [0, 2], ("a", "b", "c", "d"))
    assert len(broken.asked) == len(own.asked) == 1
    assert archive().read_bytes() == cifar


def test_what_is_extracted_needs_no_archive(cifar, monkeypatch):
    Path(NAME).write_bytes(cifar)
    load("cifar10")
    for path in (Path(NAME), archive()):
        path.unlink()
    monkeypatch.setenv("IJEPA_WAIT", "not even read")
    assert len(load("cifar10")) == 2
    assert not archive().exists()


@pytest.mark.parametrize("place", ["root", "file", "folder", "folder with blanks", "second", "data", "here", "home"])
def test_an_archive_of_the_reader_is_used_and_stays_as_it_is(place, cifar, tmp_path, monkeypatch):
    folder = {"root": archive().parent, "here": Path(), "home": tmp_path / "home" / "Downloads"}.get(place)
    path = (folder or tmp_path / place) / ("renamed.tgz" if place == "file" else NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cifar)
    before = path.stat().st_mtime_ns
    if place == "data":
        monkeypatch.setenv("IJEPA_DATA", str(path.parent))
    elif folder is None:
        named = path if place == "file" else path.parent
        monkeypatch.setenv("IJEPA_MIRROR", f"/nowhere, {named}" if place == "second" else str(named))
    monkeypatch.setenv("IJEPA_WAIT", "0")
    assert len(load("cifar10")) == 2
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (cifar, before)
    assert {p.name for p in archive().parent.iterdir()} <= {NAME, f"{NAME}.lock", datasets.CIFAR10.base_folder}


def test_copied_where_no_link_can_be_made(cifar, monkeypatch):
    def refuse(*_):
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", refuse)
    Path(NAME).write_bytes(cifar)
    load("cifar10")
    assert (archive().read_bytes(), archive().stat().st_nlink) == (cifar, 1)


def test_wrong_archives_are_named_and_passed_over(cifar, serve, tmp_path, monkeypatch, capsys):
    wrong = [tmp_path / "home" / "Downloads" / NAME, Path(NAME).absolute(), archive()]
    archive().parent.mkdir(parents=True)
    for path in wrong:
        path.write_bytes(cifar[:-1])
    monkeypatch.setattr(datasets.CIFAR10, "url", serve(cifar).url)
    load("cifar10")
    told = capsys.readouterr().err
    for path in wrong:
        assert f"{path} has not torchvision's checksum" in told
    assert [path.read_bytes() == cifar for path in wrong] == [False, False, True]


def test_addresses_of_the_reader_come_first(cifar, serve, monkeypatch, capsys):
    complete, prefix, listed = serve(status=404), serve(cifar), serve(cifar)
    addresses = f"ftp://127.0.0.1/ {complete.url}?download=1,{prefix.url.removesuffix(NAME)}"
    monkeypatch.setenv("IJEPA_MIRROR", addresses)
    monkeypatch.setattr(fetch, "MIRRORS", {"cifar10": (listed.url,)})
    load("cifar10")
    assert (complete.paths, prefix.paths, listed.paths) == ([f"/{NAME}?download=1"], [f"/{NAME}"], [])
    assert "ftp:/127.0.0.1 is neither a file nor an http(s) address" in capsys.readouterr().err


def test_no_wait_asks_no_server(cifar, serve, monkeypatch):
    server = serve(cifar)
    monkeypatch.setattr(datasets.CIFAR10, "url", server.url)
    monkeypatch.setenv("IJEPA_WAIT", "0")
    with pytest.raises(DataError, match=r"within 0 s .none was asked.*--data shapes needs no download"):
        load("cifar10")
    assert server.asked == []


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", "3 min"])
def test_a_wait_that_is_no_number_of_seconds(text, cifar, monkeypatch):
    monkeypatch.setenv("IJEPA_WAIT", text)
    with pytest.raises(DataError, match=f"IJEPA_WAIT='{text}' is no number of seconds"):
        load("cifar10")


def test_two_at_a_time_fetch_once(cifar, serve, monkeypatch):
    server = serve(cifar, rate=50_000)
    monkeypatch.setattr(datasets.CIFAR10, "url", server.url)
    found = []
    threads = [threading.Thread(target=lambda: found.append(len(load("cifar10")))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, server.asked) == ([2, 2], [None])


def test_another_process_that_never_ends_is_not_waited_for_for_ever(cifar, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "HANDLING", 0.2)
    monkeypatch.setenv("IJEPA_WAIT", "0.1")
    archive().parent.mkdir(parents=True)
    lock, held, done = FileLock(f"{archive()}.lock", thread_local=False), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with pytest.raises(DataError, match="another process still holds"):
        load("cifar10")
    done.set()
    thread.join()
    assert f"another process is fetching {NAME}: waiting" in capsys.readouterr().err
