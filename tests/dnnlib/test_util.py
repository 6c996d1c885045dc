import copy
import http.server
import pickle
import threading

import pytest

import dnnlib
from dnnlib import util

PAYLOAD = bytes(range(256)) * 2000


def test_easydict_attributes_are_items():
    d = dnnlib.EasyDict(a=1)
    d.b = 2
    assert (d.a, d["b"], dict(d)) == (1, 2, {"a": 1, "b": 2})
    del d.a
    assert "a" not in d
    with pytest.raises(AttributeError, match="'a'"):
        d.a  # noqa: B018
    with pytest.raises(AttributeError, match="'a'"):
        del d.a
    with pytest.raises(KeyError):
        d["a"]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_easydict_pickles_under_its_official_name(protocol):
    d = dnnlib.EasyDict(a=dnnlib.EasyDict(b=[1]))
    data = pickle.dumps(d, protocol)
    assert b"dnnlib.util" in data
    for twin in (pickle.loads(data), copy.deepcopy(d)):
        assert twin == d
        assert type(twin.a) is util.EasyDict
        assert twin.a.b is not d.a.b


def test_atomic_write_replaces_only_on_success(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), util.atomic_write(path) as file:
        file.write(b"half")
        assert path.read_bytes() == b"old"
        raise KeyError
    assert path.read_bytes() == b"old"
    with util.atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_open_url_opens_local_files(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    for name in (path, str(path)):
        with util.open_url(name) as file:
            assert file.read() == b"abc"
    with pytest.raises(FileNotFoundError):
        util.open_url(tmp_path / "none")


@pytest.mark.parametrize("url", ["ftp://host/x", "file:///etc/hosts", "data://x"])
def test_other_schemes_are_refused(url, tmp_path):
    with pytest.raises(ValueError, match="only http, https"):
        util.open_url(url, cache_dir=tmp_path)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves PAYLOAD, whole or with a fault that the path names."""

    def do_GET(self):  # noqa: N802
        self.server.paths.append(self.path)
        kind = self.path.rsplit("/", 1)[-1]
        if kind == "missing":
            self.send_error(404)
            return
        if kind in ("moved", "escape"):
            self.send_response(302)
            target = "/net.pkl" if kind == "moved" else "file:///etc/hosts"
            self.send_header("Location", target)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = b"" if kind == "empty" else PAYLOAD
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if kind == "page" else "binary/octet-stream")
        if kind != "unsized":
            self.send_header("Content-Length", str(len(body) + (kind == "short")))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.paths = []
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        httpd.url = f"http://127.0.0.1:{httpd.server_port}"
        yield httpd
        httpd.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["net.pkl", "moved", "unsized"])
def test_download_happens_once(server, tmp_path, name):
    url = f"{server.url}/{name}"
    for _ in range(2):
        with util.open_url(url, cache_dir=tmp_path) as file:
            assert file.read() == PAYLOAD
    assert server.paths.count(f"/{name}") == 1
    assert list(tmp_path.iterdir()) == [util.cache_path(url, tmp_path)]


def test_cache_folder_comes_from_the_environment(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "deep" / "cache"))
    util.open_url(f"{server.url}/net.pkl").close()
    assert [p.name[-8:] for p in (tmp_path / "deep" / "cache").iterdir()] == ["_net.pkl"]


def test_default_cache_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("DNNLIB_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    url = "https://host/a/b%20c.pkl?x=1"
    assert util.cache_path(url).parent == tmp_path / ".cache" / "dnnlib"
    assert util.cache_path(url).name.endswith("_b_c.pkl")
    assert util.cache_path(url) != util.cache_path(url + "2")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "404"),
        ("short", str(len(PAYLOAD))),
        ("empty", "empty file"),
        ("page", "web page"),
        ("escape", "file:///etc/hosts"),
    ],
)
def test_failed_download_keeps_nothing_and_says_what_to_do(server, tmp_path, kind, reason):
    url = f"{server.url}/{kind}"
    with pytest.raises(util.DownloadError) as info:
        util.open_url(url, cache_dir=tmp_path)
    message = str(info.value)
    assert reason in message
    assert url in message
    assert str(util.cache_path(url, tmp_path)) in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "reason"), [("net.pkl", "announces"), ("unsized", "sends more")])
def test_downloads_are_bounded(server, tmp_path, monkeypatch, kind, reason):
    monkeypatch.setattr(util, "MAX_DOWNLOAD_BYTES", len(PAYLOAD) - 1)
    with pytest.raises(util.DownloadError, match=f"{reason}.* {len(PAYLOAD) - 1} "):
        util.open_url(f"{server.url}/{kind}", cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_offline_names_url_and_place_for_the_file(server, tmp_path):
    server.server_close()
    url = f"{server.url}/net.pkl"
    with pytest.raises(util.DownloadError) as info:
        util.open_url(url, cache_dir=tmp_path)
    assert url in str(info.value)
    by_hand = util.cache_path(url, tmp_path)
    assert str(by_hand) in str(info.value)
    by_hand.write_bytes(b"by hand")
    with util.open_url(url, cache_dir=tmp_path) as file:
        assert file.read() == b"by hand"


def test_text_of_others_is_made_fit_for_a_message():
    assert util.printable("data/ä b.png") == "data/ä b.png"
    assert util.printable("a\x1b[2J\nb\u202e") == r"a\x1b[2J\nb\u202e"
    assert util.printable("x" * 101) == "x" * 100 + "..."
    assert util.first_line(ValueError("\n one\x07\ntwo")) == r"one\x07"
    assert util.first_line(ValueError()) == "ValueError"


@pytest.mark.parametrize("durable", [True, False])
def test_files_with_the_longest_names_can_be_written(tmp_path, durable):
    path = tmp_path / ("x" * 255)
    with util.atomic_write(path, durable=durable) as file:
        file.write(b"data")
    assert path.read_bytes() == b"data" and list(tmp_path.iterdir()) == [path]
