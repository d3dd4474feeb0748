"""Fetching from a server on this machine: resume, checksums, refusals, and malicious archives."""

import gzip
import hashlib
import io
import os
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.io
from PIL import Image

from dice.errors import InputError
from dice.images import datasets, download
from dice.images.download import fetch, unpack
from dice.images.sources import GROUPS, ITEMS, Item, Step

CONTENT = np.random.default_rng(0).bytes(700_000)


def md5(data: bytes) -> str:
    return "md5:" + hashlib.md5(data).hexdigest()


class Server:
    """Serves `files`. `cuts`: how many bytes each of the next answers sends before it breaks off."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.ranges: list[str | None] = []  # the Range header of every request
        self.takes_ranges = self.says_length = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.ranges.append(wanted)
        data = self.files.get(request.path.partition("?")[0])
        if data is None:
            return request.send_error(404)
        start = 0
        if wanted and self.takes_ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(data)}")
                request.send_header("Content-Length", "0")
                return request.end_headers()
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            request.send_response(200)
        if self.says_length:
            request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        request.wfile.write(data[start:][: self.cuts.pop(0)] if self.cuts else data[start:])
        request.close_connection = True


@pytest.fixture
def server():
    server = Server()
    server.files["/file"] = CONTENT
    yield server
    server.http.shutdown()
    server.http.server_close()


# -- one file


def test_fetch(server, tmp_path):
    fetch(f"{server.url}/file", tmp_path / "f", md5(CONTENT))
    assert (tmp_path / "f").read_bytes() == CONTENT and os.listdir(tmp_path) == ["f"]


def test_beginning_of_a_checksum_suffices(server, tmp_path):
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    fetch(f"{server.url}/file", tmp_path / "f", f"sha256:{sha256[:8]}")
    with pytest.raises(InputError, match="not the expected 00000000"):
        fetch(f"{server.url}/file", tmp_path / "g", "sha256:00000000")


def test_broken_transfer_is_resumed_where_it_broke(server, tmp_path):
    server.cuts = [100_000, 50_000]
    fetch(f"{server.url}/file", tmp_path / "f", md5(CONTENT))
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]


def test_what_an_earlier_run_left_is_used(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT[:600_000])
    fetch(f"{server.url}/file", tmp_path / "f", md5(CONTENT))
    assert (tmp_path / "f").read_bytes() == CONTENT and server.ranges == ["bytes=600000-"]


def test_complete_part_needs_no_byte_more(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT)
    fetch(f"{server.url}/file", tmp_path / "f", md5(CONTENT))
    assert (tmp_path / "f").read_bytes() == CONTENT and len(server.ranges) == 1


@pytest.mark.parametrize("left", [b"another file" * 100, bytes(len(CONTENT)), bytes(len(CONTENT) + 5)])
def test_part_of_another_file_is_thrown_away(server, tmp_path, left):
    (tmp_path / "f.part").write_bytes(left)
    fetch(f"{server.url}/file", tmp_path / "f", md5(CONTENT))
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_server_without_ranges(server, tmp_path):
    server.takes_ranges = False
    server.cuts = [100_000]
    fetch(f"{server.url}/file", tmp_path / "f", md5(CONTENT))
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_transfer_that_never_gets_through_keeps_what_came(server, tmp_path):
    server.cuts = [1000] * 50
    with pytest.raises(InputError, match=r"broken off after 3,000 of 700,000 bytes .*f\.part"):
        fetch(f"{server.url}/file", tmp_path / "f", md5(CONTENT))
    assert os.listdir(tmp_path) == ["f.part"] and (tmp_path / "f.part").read_bytes() == CONTENT[:3000]


def test_a_server_that_tells_no_length_is_bounded(server, tmp_path, monkeypatch):
    server.says_length = False
    fetch(f"{server.url}/file", tmp_path / "f", md5(CONTENT))
    assert (tmp_path / "f").read_bytes() == CONTENT
    monkeypatch.setattr(download, "_MOST_UNSIZED", 600_000)
    with pytest.raises(InputError, match="without saying how much"):
        fetch(f"{server.url}/file", tmp_path / "g", md5(CONTENT))
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("says_length", [True, False])
def test_a_download_does_not_fill_the_disk(server, tmp_path, monkeypatch, says_length):
    server.says_length = says_length
    free = download._SPARED + 400_000
    monkeypatch.setattr(
        download.shutil,
        "disk_usage",
        lambda folder: SimpleNamespace(free=free - sum(file.stat().st_size for file in folder.iterdir())),
    )
    with pytest.raises(InputError, match="make room"):
        fetch(f"{server.url}/file", tmp_path / "f", md5(CONTENT))
    left = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert left == 0 if says_length else 0 < left <= 400_000


def test_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(InputError, match=f"{server.url}/file: has md5 .*, not the expected"):
        fetch(f"{server.url}/file", tmp_path / "f", md5(b"other"))
    assert os.listdir(tmp_path) == []


def test_without_a_checksum_the_first_download_is_trusted_and_remembered(server, tmp_path):
    (tmp_path / "f.part").write_bytes(b"of unknown origin")
    fetch(f"{server.url}/file", tmp_path / "f", None)
    assert (tmp_path / "f").read_bytes() == CONTENT and server.ranges == [None]
    assert (tmp_path / "f.sha256").read_text() == hashlib.sha256(CONTENT).hexdigest()
    (tmp_path / "f").unlink()
    server.files["/file"] = CONTENT[:-1] + b"?"
    with pytest.raises(
        InputError, match="has sha256 .* of the first download; delete .*f.sha256 to accept it"
    ):
        fetch(f"{server.url}/file", tmp_path / "f", None)
    assert not (tmp_path / "f").exists()


def test_refusal_of_the_server(server, tmp_path):
    with pytest.raises(InputError, match="/nothing: the server says 404"):
        fetch(f"{server.url}/nothing", tmp_path / "f", None)


def test_server_out_of_reach(server, tmp_path):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(InputError, match="out of reach"):
        fetch(f"{server.url}/file", tmp_path / "f", None)


def test_silent_server_is_given_up(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        with pytest.raises(InputError, match="timed out"):
            fetch(url, tmp_path / "f", None, timeout=0.1)


# -- archives


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o6777
    return info


def tarball(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_unpack_takes_the_top_folder_for_the_target(tmp_path, mode):
    folder = (member("Top", tarfile.DIRTYPE), b"")
    fork = (member("._Top"), b"resource fork")
    content = tarball(
        folder, (member("Top/a/1.png"), b"one"), (member("./Top/2 x.png"), b"two"), fork, mode=mode
    )
    (tmp_path / "x.tar").write_bytes(content)
    unpack(tmp_path / "x.tar", tmp_path / "target")
    assert (tmp_path / "target/a/1.png").read_bytes() == b"one" and (
        tmp_path / "target/2 x.png"
    ).read_bytes() == b"two"
    assert sorted(os.listdir(tmp_path)) == ["target", "x.tar"]
    assert not (tmp_path / "target/a/1.png").stat().st_mode & 0o7002  # neither set-uid nor world-writable


def test_unpack_without_a_top_folder(tmp_path):
    (tmp_path / "x.tar").write_bytes(tarball((member("1.png"), b"one"), (member("2.png"), b"two")))
    unpack(tmp_path / "x.tar", tmp_path / "target")
    assert sorted(os.listdir(tmp_path / "target")) == ["1.png", "2.png"]


@pytest.mark.parametrize(
    "hostile",
    [
        member("../evil"),
        member("Top/../../evil"),
        member("/evil"),
        member("..\\evil"),
        member("C:/evil"),
        member("Top/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("Top/link", tarfile.LNKTYPE, "Top/a.png"),
        member("Top/device", tarfile.CHRTYPE),
        member("Top/pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda info: info.name,
)
def test_hostile_archive_leaves_nothing(tmp_path, hostile):
    work = tmp_path / "work"
    work.mkdir()
    (work / "x.tar").write_bytes(tarball((member("Top/a.png"), b"one"), (hostile, b"")))
    with pytest.raises(InputError, match="x.tar: refused"):
        unpack(work / "x.tar", work / "target")
    assert os.listdir(work) == ["x.tar"] and os.listdir(tmp_path) == ["work"]


def test_archive_that_grows_out_of_proportion_is_refused(tmp_path):
    info = member("Top/zeros")
    info.size = 200 << 20
    (tmp_path / "x.tar").write_bytes(gzip.compress(info.tobuf()))
    with pytest.raises(InputError, match="far more than its size"):
        unpack(tmp_path / "x.tar", tmp_path / "target")
    assert os.listdir(tmp_path) == ["x.tar"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_archive_leaves_nothing(tmp_path, share):
    whole = tarball(*[(member(f"Top/{i}"), np.random.default_rng(i).bytes(3000)) for i in range(9)])
    (tmp_path / "x.tar").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match="x.tar"):
        unpack(tmp_path / "x.tar", tmp_path / "target")
    assert os.listdir(tmp_path) == ["x.tar"]


def test_interrupted_unpacking_is_no_data_set_and_starts_anew(tmp_path):
    home = tmp_path / "datasets/ood_datasets/places365"
    (home / ".test_subset.unpacking").mkdir(parents=True)
    (home / ".test_subset.unpacking/left.jpg").write_bytes(b"of a killed run")
    with pytest.raises(datasets.MissingSet):
        datasets.open_set("places365", tmp_path)
    (home / "x.tar").write_bytes(tarball((member("Top/1.jpg"), b"one")))
    unpack(home / "x.tar", home / "test_subset")
    assert datasets.open_set("places365", tmp_path).files == [os.path.join("test_subset", "1.jpg")]
    assert sorted(os.listdir(home)) == ["test_subset", "x.tar"]


def test_empty_archive_is_refused(tmp_path):
    (tmp_path / "x.tar").write_bytes(tarball((member("Top", tarfile.DIRTYPE), b"")))
    with pytest.raises(InputError, match="no files"):
        unpack(tmp_path / "x.tar", tmp_path / "target")


def test_sample_is_the_same_whatever_the_order(tmp_path):
    members = [(member(f"test/{i:04d}.jpg"), b"%d" % i) for i in range(50)]
    for name, order in (("a", members), ("b", members[::-1])):
        (tmp_path / f"{name}.tar").write_bytes(tarball(*order))
        unpack(tmp_path / f"{name}.tar", tmp_path / name, sample=10)
    chosen = sorted(os.listdir(tmp_path / "a"))
    assert chosen == sorted(os.listdir(tmp_path / "b")) and len(chosen) == 10
    assert all((tmp_path / "a" / file).read_bytes() == b"%d" % int(file[:4]) for file in chosen)


# -- download


def items(server, monkeypatch, **given):
    monkeypatch.setattr(download, "ITEMS", given)
    monkeypatch.setattr(download, "GROUPS", {"all": list(given)})


def test_failed_item_is_named_and_the_others_go_on(server, monkeypatch, tmp_path):
    png = io.BytesIO()
    Image.new("RGB", (32, 32)).save(png, "PNG")
    server.files["/LSUN.tar.gz"] = tarball((member("LSUN/test/0.png"), png.getvalue()))
    target = "datasets/ood_datasets/LSUN"
    items(
        server,
        monkeypatch,
        gone=Item(f"{server.url}/gone", "checkpoints/gone.pth", None),
        LSUN=Item(f"{server.url}/LSUN.tar.gz?dl=1", target, md5(server.files["/LSUN.tar.gz"]), Step.UNPACK),
        plain=Item(f"{server.url}/file", "checkpoints/x.pth", None),
    )
    lines = []
    outcomes = download.download(["all", "plain"], tmp_path, say=lines.append)
    assert [(o.name, o.status) for o in outcomes] == [
        ("gone", "failed"),
        ("LSUN", "fetched"),
        ("plain", "fetched"),
    ]
    assert f"fetch {server.url}/gone, save it as {tmp_path / 'checkpoints/gone.pth'}" in outcomes[0].detail
    assert "nobody publishes its checksum" in outcomes[2].detail
    assert any("404" in line for line in lines)
    assert len(datasets.open_set("LSUN", tmp_path)) == 1
    assert os.listdir(tmp_path / "datasets/ood_datasets") == ["LSUN"]

    again = download.download(["all"], tmp_path, say=lines.append)
    assert [o.status for o in again] == ["failed", "present", "present"]


def test_archive_fetched_by_hand_is_checked_and_used(server, monkeypatch, tmp_path):
    good = tarball((member("Top/1.png"), b"one"))
    items(server, monkeypatch, it=Item("http://127.0.0.1:1/it.tar.gz", "data/it", md5(good), Step.UNPACK))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/it.tar.gz").write_bytes(good[:-1])
    assert "has md5" in download.download(["it"], tmp_path, say=str)[0].detail
    (tmp_path / "data/it.tar.gz").write_bytes(good)
    assert download.download(["it"], tmp_path, say=str)[0].status == "fetched"
    assert os.listdir(tmp_path / "data") == ["it"]


def test_svhn_is_selected_after_the_download(server, monkeypatch, tmp_path):
    out = io.BytesIO()
    labels = np.arange(1, 11, dtype=np.uint8)[:, None]
    scipy.io.savemat(out, {"X": np.zeros((32, 32, 3, 10), np.uint8), "y": labels}, do_compression=True)
    server.files["/test_32x32.mat"] = out.getvalue()
    real = ITEMS["SVHN"]
    items(
        server,
        monkeypatch,
        SVHN=Item(f"{server.url}/test_32x32.mat", real.path, md5(out.getvalue()), real.step),
    )
    assert download.download(["SVHN"], tmp_path, say=str)[0].status == "fetched"
    assert len(datasets.open_set("SVHN", tmp_path)) == 10


def test_a_failed_download_leaves_no_empty_folder(server, monkeypatch, tmp_path):
    (tmp_path / "own").mkdir()
    monkeypatch.setitem(ITEMS, "gone", Item(f"{server.url}/gone", "own/of/it/gone", None))
    for root in (tmp_path, tmp_path / "new"):
        assert download.download(["gone"], root, say=str)[0].status == "failed"
    assert list(tmp_path.rglob("*")) == [tmp_path / "own"]


def test_root_that_cannot_be_written(server, monkeypatch, tmp_path):
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    items(server, monkeypatch, plain=Item(f"{server.url}/file", "checkpoints/x.pth", None))
    (outcome,) = download.download(["plain"], tmp_path, say=str)
    assert outcome.status == "failed" and "checkpoints" in outcome.detail


def test_unknown_name_is_refused_before_anything_is_fetched(tmp_path):
    with pytest.raises(InputError, match="nothing to download is called 'CIFAR10'"):
        download.download(["CIFAR-10", "CIFAR10"], tmp_path)
    assert os.listdir(tmp_path) == []


def test_items_land_where_the_sets_are_looked_for(tmp_path):
    for name in {name for group in GROUPS.values() for name in group} & set(datasets.known_sets()):
        with pytest.raises(datasets.MissingSet) as caught:
            datasets.open_set(name, tmp_path)
        place = str(caught.value).partition("belongs in ")[2].partition(" (")[0]
        expected = str(tmp_path / ITEMS[name].path)
        assert place.startswith(expected) or expected.startswith(place)


def test_authors_files_have_the_recorded_checksums(shared):
    for name, item in ITEMS.items():
        if name.startswith(("checkpoint-", "mean-")):
            data = (shared / "realdata" / item.path).read_bytes()
            assert "sha256:" + hashlib.sha256(data).hexdigest() == item.digest
