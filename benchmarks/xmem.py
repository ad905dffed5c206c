"""XMem beside the original on a CPU, with the same seeded random weights: the same probabilities? how quick? how much memory to read?

    git clone https://github.com/hkchengrex/XMem /tmp/XMem && git -C /tmp/XMem checkout f3b841d      # MIT; nothing of it is in this project
    python benchmarks/xmem.py /tmp/XMem parity      # six scenarios in float64: the largest difference, which must be below 1e-6
    python benchmarks/xmem.py /tmp/XMem read        # the memory read alone, at 854×480 with 2 objects: seconds and memory
    python benchmarks/xmem.py /tmp/XMem speed       # 30 frames of 854×480 with 2 objects; --full: with a full long-term memory

Every row is a process of its own with one thread; seconds are of processor time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import re
import subprocess
import sys
import time
import zlib
from functools import cache, partial
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from vosnb.compare import _Peak, _resident
from vosnb.models import xmem
from vosnb.models.token_memory import Held, Memory, Tokens
from vosnb.strategies.xmem import XMem

USUAL = {
    "top_k": 30, "mem_every": 5, "deep_update_every": -1, "enable_long_term": True, "num_prototypes": 128, "min_mid_term_frames": 5,
    "max_mid_term_frames": 10, "max_long_term_elements": 10000,
}  # fmt: skip
SMALL = {"mem_every": 1, "min_mid_term_frames": 2, "max_mid_term_frames": 8, "num_prototypes": 64}
GAINS = {  # the first part of a name that fits; 0.7 elsewhere
    "key_proj.key": 0.45, "key_proj.d": 0.15, "key_proj.e": 0.35, "skip_conv": 0.2, "pred": 1.5, "fuser": 0.6, "hidden_": 0.5,
    "encoder": 1.41,
}  # fmt: skip
BOTH = {0: (1, 2)}
# name → the rules that differ, {frame: objects annotated}, whether the network has a sensory memory
SCENARIOS: dict[str, tuple[dict[str, Any], dict[int, tuple[int, ...]], bool]] = {
    "no long-term memory": ({"enable_long_term": False, "mem_every": 2}, BOTH, True),
    "deep updates on their own clock": ({"deep_update_every": 3}, BOTH, True),
    "no sensory memory": ({}, BOTH, False),
    "all objects annotated again": ({}, {0: (1, 2), 9: (1, 2)}, True),
    "labels 3 and 7": ({}, {0: (3, 7)}, True),
    "three groups, consolidated": (SMALL, {0: (1,), 4: (2,), 9: (3,)}, True),
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("original", type=Path, help="a checkout of the original")
    p.add_argument("task", choices=("parity", "read", "speed"))
    p.add_argument("--frames", type=int, default=30)
    p.add_argument("--size", type=int, nargs=2, default=(854, 480), metavar=("WIDTH", "HEIGHT"))
    p.add_argument("--full", action="store_true", help="speed: start with 10,000 long-term tokens and 9 frames")
    p.add_argument("--one", help=argparse.SUPPRESS)
    args = p.parse_args()
    torch.set_num_threads(1)
    if args.one:
        print(json.dumps(globals()[args.task](args, args.one)))
        return
    if args.task == "parity":
        torch.set_default_dtype(torch.float64)
        found = {}
        for name in SCENARIOS:
            found[name] = parity(args, name)
            tell(name, found[name])
        sys.exit(max(values["difference"] for values in found.values()) > 1e-6)
    theirs, ours = (row(args.task, args, who) for who in ("original", "ours"))
    tell("original / ours", {k: theirs[k] / max(ours[k], 1e-9) for k in ours})


def row(task: str, args: argparse.Namespace, which: str) -> dict[str, float]:
    """What the task measures, from a process of its own, printed as a line."""
    more = ["--frames", str(args.frames), "--size", *map(str, args.size), *(["--full"] if args.full else [])]
    command = [sys.executable, __file__, str(args.original), task, *more, "--one", which]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(said.splitlines()[-1])
    tell(which, found)
    return found


def tell(what: str, found: dict[str, float]) -> None:
    print(f"{what:34}" + "   ".join(f"{name} {value:.3g}" for name, value in found.items()), flush=True)


# -- the two ------------------------------------------------------------------------------------------------------------------


@cache
def state(hidden: bool) -> dict[str, torch.Tensor]:
    """Seeded weights of the published architecture, scaled so that signals neither fade nor blow up and keys differ by about 1."""
    shape = xmem.Architecture() if hidden else xmem.Architecture(hidden=0, update=0)
    found = {}
    for name, tensor in xmem.Network(shape).state_dict().items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        x = rng.standard_normal(tuple(tensor.shape))
        if tensor.ndim >= 2:
            gain = next((gain for part, gain in GAINS.items() if part in name), 0.7)
            x = gain * x / np.sqrt(np.prod(tensor.shape[1:]))
            if name == "value_encoder.conv1.weight":
                x[:, 3:] *= 6  # masks matter more than colours
            if re.search(r"fuser.block1.(conv1|downsample)", name):
                x[:, :1024] *= 0.3  # what an object has of its own matters more than what all share
                x[:, 1024:] *= 2
        elif re.search(r"(bn\d|downsample\.1)\.(weight|running_var)$", name):
            last = re.search(r"key_encoder.*bn3.weight|value_encoder.layer.*bn2.weight", name)  # of a residual branch
            x = (1 + 0.1 * x.clip(-3, 3)) * (0.35 if last else 1)
        else:
            x = 0.05 * x - 0.5 * (name == "decoder.pred.bias")
        found[name] = torch.as_tensor(x).to(tensor.dtype)
    return found


def original(folder: Path, rules: dict[str, Any], hidden: bool, dtype: torch.dtype) -> Any:
    """The original's `InferenceCore`. Its encoders would download ImageNet's weights; here they need none."""
    sys.path.insert(0, str(folder))
    from inference.inference_core import InferenceCore
    from model import resnet
    from model.network import XMem as Original

    for name in ("resnet50", "resnet18"):
        setattr(resnet, name, partial(bare, getattr(resnet, name)))
    config = {**rules, "enable_long_term_count_usage": True, "hidden_dim": 64 if hidden else 0}
    network = Original(config).eval()
    network.load_state_dict(state(hidden))
    return InferenceCore(network.to(dtype), config)


def bare(make: Any, pretrained: bool, **more: Any) -> Any:
    return make(pretrained=False, **more)


def film(width: int, height: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """(T, H, W, 3) uint8 of three textured discs that move on a textured ground, and their labels (T, H, W)."""
    rng = np.random.default_rng(0)
    ground = np.kron(rng.integers(40, 200, (height // 8 + 1, width // 8 + 1, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    y, x = np.mgrid[:height, :width]
    images, labels = np.repeat(ground[None, :height, :width], frames, 0), np.zeros((frames, height, width), np.uint8)
    for t in range(frames):
        for obj, (cx, cy) in {1: (0.25, 0.3), 2: (0.7, 0.5), 3: (0.4, 0.75)}.items():
            inside = np.hypot(x - (cx + 0.006 * t) * width, y - cy * height) < 0.17 * height
            images[t][inside] = images[t][inside] // 3 + np.uint8(50 * obj)
            labels[t][inside] = obj
        images[t] ^= rng.integers(0, 8, images[t].shape, np.uint8)
    return images, labels


def normal(image: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    x = torch.from_numpy(image).permute(2, 0, 1).to(dtype) / 255
    return (x - torch.tensor(xmem.MEAN, dtype=dtype).view(3, 1, 1)) / torch.tensor(xmem.STD, dtype=dtype).view(3, 1, 1)


# -- the tasks ----------------------------------------------------------------------------------------------------------------


def parity(args: argparse.Namespace, name: str) -> dict[str, float]:
    rules, given, hidden = SCENARIOS[name]
    rules, size = {**USUAL, **rules}, (80, 128)
    frames = max(given) + (7 if len(given) > 2 else 3 if len(given) > 1 else 8)
    images, labels = film(size[1], size[0], frames)
    core = original(args.original, rules, hidden, torch.float64)
    model = xmem.XMem(xmem.build(state(hidden)).double())
    tracker = XMem(model=model, size=-1, compat="xmem", **rules).tracker(size, frames)
    known: list[int] = []
    worst = 0.0
    for t in range(frames):
        discs = given.get(t, ()) if len(given) > 2 else range(1, 3)  # which of the film's discs the objects are
        masks = {obj: labels[t] == disc for obj, disc in zip(given[t], discs, strict=True)} if t in given else None
        planes = valid = None
        if masks:
            known += [obj for obj in masks if obj not in known]
            planes = torch.stack([torch.from_numpy(masks.get(obj, np.zeros(size, bool))).double() for obj in known])
            valid = [known.index(obj) + 1 for obj in masks]
            core.set_all_labels(list(range(1, len(known) + 1)))
        with torch.no_grad():
            theirs = core.step(normal(images[t], torch.float64), planes, valid)
        ours = model.whole(*tracker.advance(images[t], masks))
        worst = max(worst, float((theirs - ours).abs().max()))
    return {"difference": worst, **{f"object {o}, at most": float(p.max()) for o, p in zip(known, theirs[1:], strict=True)}}


def tokens(args: argparse.Namespace, frames: int, long: int) -> dict[str, torch.Tensor]:
    count = -(-args.size[0] // 16) * -(-args.size[1] // 16)
    draw = torch.Generator().manual_seed(0)
    found = {"count": count}
    for part, n in (("work", frames * count), ("long", long), ("query", count)):
        found[part] = (
            torch.randn(n, 64, generator=draw), 1 + torch.rand(n, 1, generator=draw), torch.rand(n, 64, generator=draw),
            torch.randn(n, 2, 512, generator=draw),
        )  # fmt: skip
    return found


def filled(who: str, core: Any, given: dict[str, Any]) -> Any:
    """A memory of `given` tokens: the original's, put into `core`, or ours."""
    count = given["count"]
    if who == "original":
        memory = core.memory
        for store, part in ((memory.work_mem, "work"), (memory.long_mem, "long")):
            key, shrinkage, selection, values = given[part]
            if len(key):
                as_rows = values.permute(1, 2, 0).contiguous()
                more = (selection.T[None], [1, 2]) if part == "work" else (None, None)
                store.add(key.T[None].contiguous(), as_rows if part == "work" else [as_rows], shrinkage.T[None], *more)
        memory.CK, memory.CV = 64, 512
        return memory
    rules = XMem(model=None)
    work = []
    for i in range(0, len(given["work"][0]), count):
        key, shrinkage, selection, values = (x[i : i + count] for x in given["work"])
        held = {0: Held(values.flatten(1).contiguous())}
        work.append(Tokens.new(key, shrinkage, held, source=(key, shrinkage, selection), permanent=i == 0))
    key, shrinkage, _, values = given["long"]
    rows = torch.arange(len(key))
    long = Tokens.new(key, shrinkage, {0: Held(values.flatten(1), rows)}) if len(key) else None
    return Memory(rules, (2,), tuple(work), long)


def read(args: argparse.Namespace, who: str) -> dict[str, float]:
    """One read of 10 frames and 10,000 prototypes by a frame's queries: seconds, and MB beyond what is held before.

    An earlier read, of a frame alone, has made the libraries' own buffers; freed memory is given back to the system first.
    """
    height, width = -(-args.size[1] // 16), -(-args.size[0] // 16)
    for frames, long in ((1, 0), (10, 10000)):
        core = original(args.original, dict(USUAL), True, torch.float32) if who == "original" else None
        given = tokens(args, frames, long)
        memory = filled(who, core, given)
        key, _, selection, _ = given.pop("query")
        del given
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before, started = _resident(), time.process_time()
        with _Peak() as peak, torch.no_grad():
            if who == "original":
                memory.match_memory(*(x.T.reshape(1, 64, height, width).contiguous() for x in (key, selection)))
            else:
                memory.read(key, selection)
    return {"cpu s": time.process_time() - started, "MB": max(1.0, peak.resident - before)}


def speed(args: argparse.Namespace, who: str) -> dict[str, float]:
    width, height = args.size
    images, labels = film(width, height, args.frames)
    masks = {obj: labels[0] == obj for obj in (1, 2)}
    if who == "original":
        core = original(args.original, dict(USUAL), True, torch.float32)
        core.set_all_labels([1, 2])
    else:
        tracker = XMem(model=xmem.XMem(xmem.build(state(True))), size=-1, **USUAL).tracker((height, width), args.frames)
    for t, image in enumerate(images):
        if t == 1:  # the first frame only writes
            if args.full:
                memory = filled(who, core if who == "original" else None, tokens(args, 8, 10000))
                if who == "ours":
                    tracker.memory = memory
            started = time.process_time()
        with torch.no_grad():
            if who == "original":
                planes = torch.stack([torch.from_numpy(m).float() for m in masks.values()]) if t == 0 else None
                core.step(normal(image, torch.float32), planes, [1, 2] if t == 0 else None).argmax(0)
            else:
                list(tracker.advance(image, masks if t == 0 else None))
    return {
        "cpu s/frame": (time.process_time() - started) / (len(images) - 1),
        "peak MB": getrusage(RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
