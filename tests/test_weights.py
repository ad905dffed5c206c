import hashlib
import http.server
import socket
import threading

import numpy as np
import pytest

from vosnb import models
from vosnb.errors import InputError
from vosnb.models import weights

DATA = np.random.default_rng(0).bytes(3 * weights.CHUNK + 12345)


class Server(http.server.ThreadingHTTPServer):
    """Serves DATA at any path. `breaks`: how many answers end half way. `ranges`: whether it can resume."""

    breaks, ranges, data = 0, True, DATA

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/files/net.pt"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.data)))
        self.end_headers()

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        body = self.server.data[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.breaks:
            self.server.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def card(server, monkeypatch, tmp_path):
    """Makes a card of the served file known as `net`; checkpoints lie in tmp_path/checkpoints."""

    def make(**changes):
        known = {
            "url": server.url,
            "bytes": len(DATA),
            "licence": "MIT",
            "family": "sam",
            "sha256": hashlib.sha256(DATA).hexdigest(),
        }
        card = weights.Card("net", **{**known, **changes})
        monkeypatch.setattr(weights, "cards", lambda: {"net": card})
        return card

    monkeypatch.setenv("VOSNB_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("VOSNB_HEADLESS", "1")
    make()
    return make


def left(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_a_fetched_checkpoint_is_whole_and_is_found_again_without_the_network(card, server, tmp_path):
    file = weights.fetch("net")
    assert file == tmp_path / "checkpoints" / "net.pt" and file.read_bytes() == DATA
    assert weights.fetch("net") == weights.path("net") == file
    assert len(server.asked) == 1 and left(tmp_path) == ["net.pt"]


def test_a_broken_connection_is_resumed_where_it_broke(card, server, tmp_path):
    server.breaks = 2
    assert weights.fetch("net").read_bytes() == DATA
    half = len(DATA) // 2
    assert server.asked == [None, f"bytes={half}-", f"bytes={half + (len(DATA) - half) // 2}-"]


def test_a_size_that_nobody_states_is_the_servers_and_a_broken_download_is_still_noticed(card, server, tmp_path):
    card(bytes=None, sha256=None)
    with pytest.raises(InputError, match=r"size unknown, MIT"):
        weights.path("net")
    server.breaks = 1
    assert weights.fetch("net").read_bytes() == DATA and len(server.asked) == 2
    assert weights.path("net").read_bytes() == DATA and left(tmp_path) == ["net.pt", "net.pt.sha256"]


def test_a_size_that_cannot_be_learnt_is_said(card):
    card(bytes=None, url="http://127.0.0.1:9/net.pt")
    with pytest.raises(InputError, match="to learn the size of"):
        weights.fetch("net")


def test_a_download_of_yesterday_is_resumed(card, server, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "net.pt.part").write_bytes(DATA[:1000])
    assert weights.fetch("net").read_bytes() == DATA
    assert server.asked == ["bytes=1000-"] and left(tmp_path) == ["net.pt"]


def test_a_server_that_cannot_resume_starts_over(card, server):
    server.breaks, server.ranges = 1, False
    assert weights.fetch("net").read_bytes() == DATA


@pytest.mark.parametrize("data", [b"x" + DATA[1:], DATA + b"more"], ids=["a changed byte", "too long"])
def test_what_is_not_the_file_never_gets_its_name(card, server, tmp_path, data):
    server.data = data
    with pytest.raises(InputError, match=r"net\.pt"):
        weights.fetch("net")
    assert left(tmp_path) == []


def test_without_network_the_error_says_so_and_nothing_is_there_under_the_final_name(card, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        card(url=f"http://127.0.0.1:{closed.getsockname()[1]}/net.pt")
        with pytest.raises(InputError, match="check the network, then run `vosnb fetch net`"):
            weights.fetch("net")
    assert "net.pt" not in left(tmp_path)


def test_a_full_disk_is_said_before_the_download(card, server, monkeypatch):
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError, match="free some space"):
        weights.fetch("net")
    assert not server.asked


def test_a_place_that_cannot_be_written_is_said_before_the_download(card, server, tmp_path):
    (tmp_path / "checkpoints").write_text("a file, no folder")
    with pytest.raises(InputError, match="VOSNB_CHECKPOINTS"):
        weights.fetch("net")
    assert not server.asked


def test_a_tampered_file_is_not_used(card):
    file = weights.fetch("net")
    file.write_bytes(b"x" + DATA[1:])
    for use in (weights.path, weights.fetch):
        with pytest.raises(InputError, match="do not use it"):
            use("net")


def test_the_first_download_is_recorded_where_no_sha256_is_known_and_holds(card, tmp_path):
    card(sha256=None)
    file = weights.fetch("net")
    assert (tmp_path / "checkpoints" / "net.pt.sha256").read_text() == f"{hashlib.sha256(DATA).hexdigest()}  net.pt\n"
    assert weights.path("net") == file
    file.write_bytes(b"x" + DATA[1:])
    with pytest.raises(InputError, match="do not use it"):
        weights.path("net")


def test_a_missing_checkpoint_names_the_command_and_the_size(monkeypatch, tmp_path):
    monkeypatch.setenv("VOSNB_CHECKPOINTS", str(tmp_path))
    with pytest.raises(InputError, match=r"vosnb fetch sam2\.1_hiera_tiny` \(156 MB"):
        weights.path("sam2.1_hiera_tiny")


def test_a_folder_of_checkpoints_beside_the_notebooks_comes_first(monkeypatch, tmp_path):
    monkeypatch.delenv("VOSNB_CHECKPOINTS", raising=False)
    monkeypatch.chdir(tmp_path)
    before = weights.folders()
    (tmp_path / "checkpoints").mkdir()
    assert [str(f) for f in weights.folders()] == ["checkpoints", *map(str, before)]


def test_the_cards_are_complete():
    sizes = ("tiny", "small", "base_plus", "large")
    expected = {"sam_vit_b", "sam_vit_l", "sam_vit_h"} | {f"{v}_hiera_{s}" for v in ("sam2", "sam2.1") for s in sizes}
    assert set(weights.cards()) == expected | {"xmem", weights.SMALL, weights.SMALL_XMEM}
    for name in expected:
        card = weights.card(name)
        assert card.url.startswith("https://") and card.family in ("sam", "sam2") and card.config and card.licence
        assert card.bytes > 10**8 and len(bytes.fromhex(card.sha256)) == 32, name
    assert len({weights.card(name).sha256 for name in expected}) == len(expected)
    ours = weights.card(weights.SMALL)
    assert not ours.url and ours.bytes < 16e6 and weights.fetch(ours.name) == weights.path(ours.name)
    assert weights.card("xmem").url.startswith("https://") and weights.card("xmem").licence == "MIT"


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match="sam_vit_b"):
        weights.card("sam_vit_x")
    with pytest.raises(InputError, match="grabcut, vosnb-mini-sam2, sam_vit_b"):
        models.load("sam9")


# -- reading -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_state_is_read_from_either_format_and_unwrapped(torch, tmp_path, suffix):
    state = {"a.weight": torch.arange(6.0).reshape(2, 3)}
    if suffix == ".pt":
        torch.save({"model": state}, tmp_path / "net.pt")
    else:
        from safetensors.torch import save_file

        save_file(state, tmp_path / "net.safetensors")
    read = weights.load_state(tmp_path / f"net{suffix}")
    assert list(read) == ["a.weight"] and torch.equal(read["a.weight"], state["a.weight"])


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", DATA[:5000]])
def test_a_file_that_is_no_checkpoint_is_said_to_be_none(torch, tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match="checkpoint"):
        weights.load_state(tmp_path / name)


def test_a_checkpoint_runs_no_code(torch, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return print, ("run!",)

    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="checkpoint"):
        weights.load_state(tmp_path / "evil.pt")
    assert capsys.readouterr().out == ""


def test_a_checkpoint_of_something_else_says_what_it_holds(torch, tmp_path):
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "log.pt")
    with pytest.raises(InputError, match="epoch, lr"):
        weights.load_state(tmp_path / "log.pt")


def test_weights_of_another_architecture_name_the_first_strange_tensors(torch):
    network = torch.nn.Linear(3, 2)
    weights.fit(network, {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, "a line")
    assert (network.weight == 1).all()
    with pytest.raises(InputError, match=r"weights of a line, 2 tensors.*unknown: stem\.weight"):
        weights.fit(network, {"stem.weight": torch.ones(1)}, "a line")
    with pytest.raises(InputError, match=r"of another shape: weight \(3, 3\) for \(2, 3\)"):
        weights.fit(network, {"weight": torch.zeros(3, 3), "bias": torch.zeros(2)}, "a line")
    with pytest.raises(InputError, match="missing: bias"):
        weights.fit(network, {"weight": torch.zeros(2, 3)}, "a line")
    assert (network.weight == 1).all(), "refused weights must leave the network as it was"
