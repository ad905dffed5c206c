"""Checkpoints by name: fetched once, verified before use, read without running code.

Looked for in $VOSNB_CHECKPOINTS, or else in ./checkpoints and the user's data folder; downloads go to the first of these. Our own small
ones lie in the repository's checkpoints/ and are found wherever one works.
"""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import shutil
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..progress import progress, say

if TYPE_CHECKING:
    import torch

__all__ = ["SMALL", "Card", "card", "cards", "default", "fetch", "fit", "folders", "load_state", "path"]

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints"
SMALL = "vosnb-mini-sam2"
SMALL_XMEM = "vosnb-mini-xmem"

CHUNK = 1 << 20
ATTEMPTS = 20


@dataclass(frozen=True)
class Card:
    """What is known of a checkpoint. `bytes` and `sha256` are None where nobody states them; `config` is its family's name for the
    network; `side`: the shorter side, in pixels, that an XMem was trained for; one without a `url` comes with the repository."""

    name: str
    url: str
    licence: str
    family: str
    bytes: int | None = None
    config: str = ""
    sha256: str | None = None
    side: int | None = None

    @property
    def size(self) -> str:
        return "size unknown" if self.bytes is None else f"{self.bytes / 1e6:.0f} MB"

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2] or f"{self.name}.safetensors"

    @property
    def advice(self) -> str:
        """What to do to have it."""
        how = (
            f"run `vosnb fetch {self.name}`"
            if self.url
            else "work in a clone of vosnb's repository, which holds it, or fetch a published one: `vosnb fetch` lists them"
        )
        return f"{how} ({self.size}, {self.licence})"


@cache
def cards() -> Mapping[str, Card]:
    """All cards by name, from cards.toml."""
    text = Path(__file__).with_name("cards.toml").read_text(encoding="utf-8")
    return {name: Card(name, **fields) for name, fields in tomllib.loads(text).items()}


def card(name: str) -> Card:
    try:
        return cards()[name]
    except KeyError:
        raise InputError("a checkpoint among " + ", ".join(cards()), repr(name), "choose one of these") from None


def folders() -> list[Path]:
    """Where checkpoints may lie; the first is where new ones go."""
    if named := os.environ.get("VOSNB_CHECKPOINTS"):
        return [Path(named)]
    from platformdirs import user_data_path

    here = Path("checkpoints")
    return ([here] if here.is_dir() else []) + [user_data_path("vosnb", appauthor=False) / "checkpoints"]


def path(name: str) -> Path:
    """The verified local file; `InputError` with the command that fetches it, or where the file is not what it was."""
    wanted = card(name)
    places = folders() if wanted.url else [*folders(), SHIPPED]
    for folder in places:
        if (file := folder / wanted.file).is_file():
            _verify(file, file, wanted)
            return file
    raise InputError(f"the checkpoint {wanted.file}", f"no such file in {' or '.join(map(str, places))}", wanted.advice)


def default(family: str = "sam2") -> str:
    """The model where none is named: the largest SAM 2.1 (or XMem) that was fetched, or else our own small one, which says what it is
    for."""
    start, small = {"sam2": ("sam2.1", SMALL), "xmem": ("xmem", SMALL_XMEM)}[family]
    fetched = [c for c in cards().values() if c.name.startswith(start) and any((f / c.file).is_file() for f in folders())]
    if fetched:
        return max(fetched, key=lambda c: c.bytes or 0).name
    _tell(small, "xmem" if family == "xmem" else "sam2.1_hiera_tiny")
    return small


@cache
def _tell(small: str, larger: str) -> None:
    """Once is enough."""
    say(f"{small} is a small model for vosnb's own scenes; for real footage run `vosnb fetch {larger}` and name it")


def fetch(name: str, folder: str | Path | None = None) -> Path:
    """Downloads a checkpoint, verifies size and sha256, and only then gives it its name. One already there is verified.

    A broken download stays beside it as FILE.part and is resumed: here as long as bytes come, and by the next call. Where the
    card states no sha256, the first download's is written to FILE.sha256 and holds from then on. `InputError` without network,
    room on the disk or permission, or where what came is not what was expected.
    """
    wanted = card(name)
    if not wanted.url:
        return path(name)
    if folder is None:
        for known in folders():
            if (known / wanted.file).is_file():
                return path(name)
    file = Path(folder or folders()[0]) / wanted.file
    if file.is_file():
        _verify(file, file, wanted)
        return file
    wanted = _sized(wanted)
    part = file.with_name(file.name + ".part")
    _prepare(part, wanted)
    for _ in range(ATTEMPTS):
        before, trouble = part.stat().st_size, "the connection ended early"
        try:
            _download(wanted, part)
        except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as error:
            trouble = f"{getattr(error, 'reason', error)}"
        except OSError as error:
            raise InputError(f"to write {part}", f"'{error.strerror}'", "free some space or set VOSNB_CHECKPOINTS") from error
        if part.stat().st_size in (before, wanted.bytes):
            break
    if part.stat().st_size < wanted.bytes:
        got = f"{part.stat().st_size} of {wanted.bytes} bytes ({trouble})"
        if not part.stat().st_size:
            part.unlink()
        raise InputError(
            f"to download {wanted.url}", got, f"check the network, then run `vosnb fetch {name}` again: it resumes"
        )
    try:
        _verify(part, file, wanted)
    except InputError:
        part.unlink()  # nothing to resume: it is not the file
        raise
    os.replace(part, file)
    return file


def load_state(file: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name, on the CPU; never runs code from the file (`weights_only`, or safetensors).

    `InputError` where the file is missing, is no checkpoint, or holds something else than tensors.
    """
    import torch
    from safetensors import SafetensorError

    file = Path(file)
    if not file.is_file():
        raise InputError(
            "a checkpoint file", f"{file}, which does not exist", "check the path, or name one that `vosnb fetch` lists"
        )
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError("a PyTorch or safetensors checkpoint", f"{file} ({first[:120]})", "fetch or save it again") from None
    for wrapper in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        got = ", ".join(map(str, list(state)[:4])) if isinstance(state, Mapping) else type(state).__name__
        raise InputError("a checkpoint of named tensors", f"{file} with {got or 'nothing'}", "save the network's state_dict")
    return dict(state)


def fit(network: torch.nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Loads `state` into `network`, all of it or, where names or shapes differ (`InputError`), nothing. `what` names it."""
    own = network.state_dict()
    strange = [k for k in state if k not in own]
    missing = [k for k in own if k not in state]
    other = [
        f"{k} {tuple(v.shape)} for {tuple(own[k].shape)}" for k, v in state.items() if k in own and v.shape != own[k].shape
    ]
    if strange or missing or other:
        first = ", ".join((strange or other or missing)[:3])
        kind = "unknown" if strange else "of another shape" if other else "missing"
        raise InputError(
            f"the weights of {what}, {len(own)} tensors", f"{len(state)}, of which {kind}: {first}",
            "load it as what it is: give its architecture",
        )  # fmt: skip
    network.load_state_dict(dict(state))


def _prepare(part: Path, wanted: Card) -> None:
    """A folder that can be written to and has room, and a `.part` file to go on with: said before the download, not after."""
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise InputError(
            f"to be able to write {part}", f"'{error.strerror}'", "set VOSNB_CHECKPOINTS to a folder of your own"
        ) from None
    have = part.stat().st_size
    free = shutil.disk_usage(part.parent).free
    if have > wanted.bytes:
        part.unlink()
        part.touch()
    elif free < wanted.bytes - have:
        raise InputError(
            f"{(wanted.bytes - have) / 1e6:.0f} MB free for {part}",
            f"{free / 1e6:.0f} MB",
            "free some space or set VOSNB_CHECKPOINTS",
        )


def _sized(wanted: Card) -> Card:
    """The card with the server's word on the size, where nobody else states it."""
    if wanted.bytes is not None:
        return wanted
    try:
        with urllib.request.urlopen(urllib.request.Request(wanted.url, method="HEAD"), timeout=30) as answer:
            return replace(wanted, bytes=int(answer.headers["Content-Length"]))
    except (OSError, HTTPException, TypeError, ValueError) as error:
        advice = f"check the network, then run `vosnb fetch {wanted.name}` again"
        raise InputError(f"to learn the size of {wanted.url}", f"{getattr(error, 'reason', error)}", advice) from None


def _download(wanted: Card, part: Path) -> None:
    """Appends to `part` what is missing of it; starts over where the server cannot resume."""
    have = part.stat().st_size
    if have == wanted.bytes:
        return
    request = urllib.request.Request(wanted.url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=30) as answer:
        resumed = answer.status == 206
        todo = wanted.bytes - (have if resumed else 0)
        if (length := answer.headers.get("Content-Length")) and int(length) != todo:  # a login page, or another file
            raise urllib.error.URLError(f"{length} bytes were offered where {todo} are left")
        with part.open("ab" if resumed else "wb") as out:
            for chunk in progress(_chunks(answer), math.ceil(todo / CHUNK), wanted.file, "MB"):
                out.write(chunk)


def _chunks(answer: Any) -> Iterator[bytes]:
    while chunk := answer.read(CHUNK):
        yield chunk


def _verify(file: Path, final: Path, wanted: Card) -> None:
    """`InputError` unless `file` has the size and sha256 of the card, or of the record beside `final`, made the first time."""
    size = file.stat().st_size
    advice = (
        ("delete it and " + wanted.advice if wanted.url else "check it out again")
        if file == final
        else "nothing was kept: try again, or from another network"
    )
    if wanted.bytes is not None and size != wanted.bytes:
        raise InputError(f"{wanted.bytes} bytes in {final.name}", f"{size} bytes in {file}", advice)
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    record = final.with_name(final.name + ".sha256")
    recorded = record.read_text(encoding="utf-8").split() if record.is_file() else []
    expected = wanted.sha256 or (recorded[0] if recorded else None)
    if expected is None:
        from ..files import replacing

        with replacing(record) as temporary:
            temporary.write_text(f"{found}  {final.name}\n", encoding="utf-8")
    elif found != expected:
        raise InputError(f"{final.name} with sha256 {expected}", f"{found} in {file}", f"do not use it: {advice}")
