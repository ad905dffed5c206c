"""XMem's network (Cheng & Schwing, "XMem: Long-Term Video Object Segmentation with an Atkinson-Shiffrin Memory Model", ECCV 2022) as pure
functions: encode a frame, remember masks on it, decode what the memory says. Weights are held here, state is the caller's.

The modules carry the names of the official checkpoints, which load as they are. What a convolution gives is changed in place, which no
gradient needs and saves memory's time. The convolutions over what all objects share and
what each has of its own are computed in two halves, the shared one once. Dimensions:

    n   objects                    H, W  size of the network's input, multiples of 16     h, w  H / 16, W / 16
    Ck  channels of a key (64)     Cv    channels of a value (512)                        Ch    channels of the sensory memory (64, or 0)

Everything about an object is a plane of a batch, (n, …); everything about a frame has a batch of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import InputError
from . import weights
from .device import inference, pick

DRY_RUN = "mini-random"
SIDE = 480  # pixels, the shorter side that the published network is used with
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STRIDE = 16
SURE = 1e-7  # probabilities stay so far from 0 and 1


@dataclass(frozen=True)
class Architecture:
    """The widths of a network; the defaults are the published one's. Stages are (blocks, width), at strides 4, 8 and 16.

    `bottleneck`: how many times a key stage's width its output is. `up`: channels of the decoder at strides 16, 8 and 4.
    """

    key_stem: int = 64
    key_stages: tuple[tuple[int, int], ...] = ((3, 64), (4, 128), (6, 256))
    bottleneck: int = 4
    value_stem: int = 64
    value_stages: tuple[tuple[int, int], ...] = ((2, 64), (2, 128), (2, 256))
    key: int = 64
    value: int = 512
    hidden: int = 64
    up: tuple[int, int, int] = (512, 256, 256)
    update: int = 256
    squeeze: int = 16  # how many times narrower the channel gates are inside

    @classmethod
    def of(cls, state: Mapping[str, torch.Tensor], what: str = "the checkpoint") -> Architecture:
        """The widths of the network whose state this is; `InputError` that names what was found where it is no XMem."""

        def width(key: str) -> int:
            return state[f"{key}.weight"].shape[0]

        def stages(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
            return tuple(
                (len({k.split(".")[2] for k in state if k.startswith(f"{name}.")}), width(f"{name}.0.conv1")) for name in names
            )

        try:
            key_stages = stages(KEY_STAGES)
            return cls(
                key_stem=width("key_encoder.conv1"), key_stages=key_stages,
                bottleneck=width("key_encoder.layer3.0.conv3") // key_stages[-1][1],
                value_stem=width("value_encoder.conv1"), value_stages=stages(VALUE_STAGES),
                key=width("key_proj.key_proj"), value=width("value_encoder.fuser.block2.conv2"),
                hidden=width("decoder.hidden_update.transform") // 3 if "decoder.hidden_update.transform.weight" in state else 0,
                up=(width("decoder.fuser.block2.conv2"), width("decoder.up_16_8.out_conv.conv2"), width("decoder.up_8_4.out_conv.conv2")),
                update=width("decoder.hidden_update.g16_conv") if "decoder.hidden_update.g16_conv.weight" in state else 0,
                squeeze=width("value_encoder.fuser.block2.conv2") // width("value_encoder.fuser.attention.ChannelGate.mlp.1"),
            )  # fmt: skip
        except (KeyError, ZeroDivisionError):
            raise InputError(
                "a checkpoint of XMem (key_encoder, value_encoder, key_proj, decoder)", f"{what}, {_describe(state)}",
                "fetch one: `vosnb fetch xmem`",
            ) from None  # fmt: skip


KEY_STAGES = ("key_encoder.res2", "key_encoder.layer2", "key_encoder.layer3")
VALUE_STAGES = ("value_encoder.layer1", "value_encoder.layer2", "value_encoder.layer3")
FOREIGN = {
    "image_encoder.trunk": "SAM 2", "image_encoder.patch_embed": "SAM", "pixel_encoder": "Cutie", "mask_encoder": "Cutie",
    "key_encoder.layer1": "STCN", "kv_memory": "STM", "layer4": "a ResNet", "fc": "a classifier",
}  # fmt: skip


def _describe(state: Mapping[str, torch.Tensor]) -> str:
    """What a checkpoint that is not XMem's seems to be."""
    looks = next((kind for start, kind in FOREIGN.items() if any(k.startswith(start) for k in state)), None)
    parts = ", ".join(sorted({k.split(".")[0] for k in state})[:6])
    return f"which looks like {looks}: {parts}" if looks else f"{len(state)} tensors of {parts or 'nothing'}"


# -- the network ---------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block: two 3×3 convolutions, or with `out` wider than `width` a 1×1, a 3×3 with the stride, and a 1×1."""

    def __init__(self, inside: int, width: int, stride: int, factor: int | None):
        super().__init__()
        out = width * (factor or 1)
        if factor is None:
            self.conv1, self.bn1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        else:
            self.conv1, self.bn1 = nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
            self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.deep = factor is not None
        self.downsample = None
        if stride != 1 or inside != out:
            self.downsample = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu_()))
        if self.deep:
            y = self.bn3(self.conv3(y.relu_()))
        return y.add_(x if self.downsample is None else self.downsample(x)).relu_()


def _stage(inside: int, blocks: int, width: int, stride: int, factor: int | None = None) -> nn.Sequential:
    out = width * (factor or 1)
    return nn.Sequential(*(Block(out if i else inside, width, 1 if i else stride, factor) for i in range(blocks)))


class KeyEncoder(nn.Module):
    """A frame (1, 3, H, W) to its features at strides 4, 8 and 16."""

    def __init__(self, a: Architecture):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, a.key_stem, 7, 2, 3, bias=False), nn.BatchNorm2d(a.key_stem)
        inside = a.key_stem
        for name, stride, (blocks, width) in zip(("res2", "layer2", "layer3"), (1, 2, 2), a.key_stages, strict=True):
            self.add_module(name, _stage(inside, blocks, width, stride, a.bottleneck))
            inside = width * a.bottleneck

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        f4 = self.res2(F.max_pool2d(self.bn1(self.conv1(image)).relu_(), 3, 2, 1))
        f8 = self.layer2(f4)
        return f4, f8, self.layer3(f8)


class KeyProjection(nn.Module):
    """f16 to key (1, Ck, h, w), shrinkage ≥ 1 (1, 1, h, w) and selection in (0, 1) (1, Ck, h, w); section 3.2.1 of the paper."""

    def __init__(self, inside: int, key: int):
        super().__init__()
        self.key_proj = nn.Conv2d(inside, key, 3, padding=1)
        self.d_proj = nn.Conv2d(inside, 1, 3, padding=1)
        self.e_proj = nn.Conv2d(inside, key, 3, padding=1)

    def forward(self, f16: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.key_proj(f16), self.d_proj(f16) ** 2 + 1, self.e_proj(f16).sigmoid()


class SharedConv(nn.Conv2d):
    """A convolution over channels [shared, own]: the shared half is computed once for all objects, without them in the batch."""

    def __init__(self, shared: int, own: int, out: int, size: int, stride: int = 1, bias: bool = True):
        super().__init__(shared + own, out, size, stride, size // 2, bias=bias)
        self.shared = shared

    def forward(self, shared: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """(1, shared, h, w) and (n, own, h, w) to (n, out, h, w)."""
        once = F.conv2d(shared, self.weight[:, : self.shared], self.bias, self.stride, self.padding)
        return once + F.conv2d(own, self.weight[:, self.shared :], None, self.stride, self.padding)


class Halves(nn.Module):
    """A `SharedConv` for inference, its weights already apart."""

    def __init__(self, conv: SharedConv):
        super().__init__()
        size, stride, padding = conv.kernel_size, conv.stride, conv.padding
        self.common = nn.Conv2d(
            conv.shared, conv.out_channels, size, stride, padding, bias=conv.bias is not None, device="meta"
        )
        self.own = nn.Conv2d(
            conv.in_channels - conv.shared, conv.out_channels, size, stride, padding, bias=False, device="meta"
        )
        self.common.weight, self.own.weight = (
            nn.Parameter(w.contiguous()) for w in conv.weight.detach().tensor_split([conv.shared], 1)
        )
        self.common.bias = conv.bias

    def forward(self, shared: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return self.own(own).add_(self.common(shared))


class Residual(nn.Module):
    """conv2(relu(conv1(relu(x)))) + shortcut(x): no normalisation, no last ReLU; the shortcut of another width is a 3×3."""

    def __init__(self, inside: int, out: int):
        super().__init__()
        self.downsample = None if inside == out else nn.Conv2d(inside, out, 3, padding=1)
        self.conv1, self.conv2 = nn.Conv2d(inside, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(self.conv1(F.relu(x)).relu_())
        return y.add_(x if self.downsample is None else self.downsample(x))


class SharedResidual(nn.Module):
    """`Residual` over [shared, own]."""

    def __init__(self, shared: int, own: int, out: int):
        super().__init__()
        self.downsample, self.conv1 = SharedConv(shared, own, out, 3), SharedConv(shared, own, out, 3)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)

    def forward(self, shared: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        y = self.conv1(F.relu(shared), F.relu(own))
        return self.conv2(y.relu_()).add_(self.downsample(shared, own))


class ChannelGate(nn.Module):
    def __init__(self, width: int, squeeze: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Flatten(), nn.Linear(width, width // squeeze), nn.ReLU(), nn.Linear(width // squeeze, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))).sigmoid()[:, :, None, None]


class SpatialGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.ModuleDict({"conv": nn.Conv2d(2, 1, 7, padding=3)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.spatial["conv"](torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)).sigmoid()


class Attention(nn.Module):
    """Which channels, then where (Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018)."""

    def __init__(self, width: int, squeeze: int):
        super().__init__()
        self.ChannelGate, self.SpatialGate = ChannelGate(width, squeeze), SpatialGate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.SpatialGate(self.ChannelGate(x))


class Fuser(nn.Module):
    """What the frame shows (1, shared, h, w) with what each object has (n, own, h, w): (n, out, h, w)."""

    def __init__(self, shared: int, own: int, out: int, squeeze: int):
        super().__init__()
        self.block1 = SharedResidual(shared, own, out)
        self.attention = Attention(out, squeeze)
        self.block2 = Residual(out, out)

    def forward(self, shared: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        x = self.block1(shared, own)
        return self.block2(self.attention(x).add_(x))


class Gates(nn.Module):
    """The recurrent step of the sensory memory h (n, Ch, h, w) on seeing g (n, C, h, w)."""

    def __init__(self, inside: int, hidden: int):
        super().__init__()
        self.transform = nn.Conv2d(inside + hidden, 3 * hidden, 3, padding=1)

    def forward(self, g: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        forget, update, new = self.transform(torch.cat([g, h], 1)).chunk(3, 1)
        update = update.sigmoid()
        return forget.sigmoid() * h * (1 - update) + update * new.tanh()


class Update(Gates):
    """The decoder's: it sees the features of three scales, and the logits."""

    def __init__(self, up: tuple[int, int, int], inside: int, hidden: int):
        super().__init__(inside, hidden)
        self.g16_conv, self.g8_conv = nn.Conv2d(up[0], inside, 1), nn.Conv2d(up[1], inside, 1)
        self.g4_conv = nn.Conv2d(up[2] + 1, inside, 1)

    def forward(self, g16: torch.Tensor, g8: torch.Tensor, g4: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        seen = self.g16_conv(g16) + self.g8_conv(F.avg_pool2d(g8, 2)) + self.g4_conv(F.avg_pool2d(g4, 4))
        return super().forward(seen, h)


class ValueEncoder(nn.Module):
    """The frame with each object's mask and the others' to values (n, Cv, h, w), and the sensory memory's deep update."""

    def __init__(self, a: Architecture):
        super().__init__()
        self.conv1, self.bn1 = SharedConv(3, 2, a.value_stem, 7, 2, bias=False), nn.BatchNorm2d(a.value_stem)
        inside = a.value_stem
        for i, (blocks, width) in enumerate(a.value_stages):
            self.add_module(f"layer{i + 1}", _stage(inside, blocks, width, 2 if i else 1))
            inside = width
        self.fuser = Fuser(a.key_stages[-1][1] * a.bottleneck, inside, a.value, a.squeeze)
        if a.hidden:
            self.hidden_reinforce = Gates(a.value, a.hidden)

    def forward(self, image: torch.Tensor, f16: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
        """`planes` (n, 2, H, W): each object's mask, soft, and the sum of the others'."""
        x = F.relu(F.max_pool2d(self.bn1(self.conv1(image, planes)), 3, 2, 1))
        return self.fuser(f16, self.layer3(self.layer2(self.layer1(x))))


class Up(nn.Module):
    """Twice the resolution, with the frame's own features of that scale."""

    def __init__(self, skip: int, inside: int, out: int):
        super().__init__()
        self.skip_conv = nn.Conv2d(skip, inside, 3, padding=1)
        self.out_conv = Residual(inside, out)

    def forward(self, skip: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return self.out_conv(_larger(g, 2).add_(self.skip_conv(skip)))


class Decoder(nn.Module):
    """What the memory says of each object to logits (n, H, W), and the sensory memory's step."""

    def __init__(self, a: Architecture):
        super().__init__()
        f4, f8, f16 = (width * a.bottleneck for _, width in a.key_stages)
        self.fuser = Fuser(f16, a.value + a.hidden, a.up[0], a.squeeze)
        if a.hidden:
            self.hidden_update = Update(a.up, a.update, a.hidden)
        self.up_16_8, self.up_8_4 = Up(f8, a.up[0], a.up[1]), Up(f4, a.up[1], a.up[2])
        self.pred = nn.Conv2d(a.up[2], 1, 3, padding=1)

    def forward(
        self,
        f4: torch.Tensor,
        f8: torch.Tensor,
        f16: torch.Tensor,
        readout: torch.Tensor,
        hidden: torch.Tensor | None,
        update: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        g16 = self.fuser(f16, readout if hidden is None else torch.cat([readout, hidden], 1))
        g8 = self.up_16_8(f8, g16)
        g4 = self.up_8_4(f4, g8)
        logits = self.pred(F.relu(g4))
        if update and hidden is not None:
            hidden = self.hidden_update(g16, g8, torch.cat([g4, logits], 1), hidden)
        return _larger(logits, 4)[:, 0], hidden


class Network(nn.Module):
    """All of it, as in a checkpoint. `key_encoder`, `key_proj`, `value_encoder` and `decoder` are called one by one, by `XMem`."""

    def __init__(self, architecture: Architecture | None = None):
        super().__init__()
        self.architecture = a = architecture or Architecture()
        self.key_encoder, self.value_encoder = KeyEncoder(a), ValueEncoder(a)
        self.key_proj = KeyProjection(a.key_stages[-1][1] * a.bottleneck, a.key)
        self.decoder = Decoder(a)


def _larger(x: torch.Tensor, times: int) -> torch.Tensor:
    return F.interpolate(x, scale_factor=times, mode="bilinear", align_corners=False)


def aggregate(masks: torch.Tensor) -> torch.Tensor:
    """Independent probabilities (n, H, W) to ones that compete (n + 1, H, W), background first: a softmax of their log-odds, the
    background's being the probability that no object is there (Oh et al., "Fast Video Object Segmentation by Reference-Guided
    Mask Propagation", CVPR 2018)."""
    every = torch.cat([(1 - masks).prod(0, keepdim=True), masks]).clamp(SURE, 1 - SURE)
    return torch.log(every / (1 - every)).softmax(0)


# -- the model -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Frame:
    """One encoded frame: `image` (1, 3, H, W) normalised and padded; features; key and selection (h·w, Ck), shrinkage (h·w, 1).

    `shape` is the frame's own (height, width), `inner` the one it was resized to, `corner` where that lies in (H, W).
    """

    image: torch.Tensor
    f4: torch.Tensor
    f8: torch.Tensor
    f16: torch.Tensor
    key: torch.Tensor
    shrinkage: torch.Tensor
    selection: torch.Tensor
    shape: tuple[int, int]
    inner: tuple[int, int]
    corner: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        return self.f16.shape[-2], self.f16.shape[-1]


class XMem:
    """`network`: a `Network` on its device, which is taken over and changed for inference. `amp`: half precision on CUDA; `side`: the
    shorter side, in pixels, of the frames that it was made for."""

    def __init__(self, network: Network, name: str = "xmem", amp: bool = False, side: int = SIDE):
        self.network, self.name, self.side = _prepared(network.eval()), name, side
        self.hidden = network.architecture.hidden
        weight = network.key_proj.key_proj.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.amp = torch.float16 if amp and self.device.type == "cuda" else torch.float32
        self.mean, self.std = (torch.tensor(v, device=self.device, dtype=self.dtype).view(1, 3, 1, 1) for v in (MEAN, STD))

    def encode(self, image: np.ndarray, size: int | None = None, antialias: bool = False) -> Frame:
        """(H₀, W₀, 3) uint8 RGB to features; its shorter side is resized to `size` (None: as it is). The published results come from
        images resized without `antialias`."""
        shape = image.shape[:2]
        inner = shape if size is None else tuple(size * side // min(shape) for side in shape)
        with inference(self.device, self.amp):
            x = torch.from_numpy(np.ascontiguousarray(image)).to(self.device).permute(2, 0, 1)[None].to(self.dtype) / 255
            x = (x - self.mean) / self.std
            if inner != shape:
                x = F.interpolate(x, size=inner, mode="bilinear", align_corners=False, antialias=antialias)
            missing = [-side % STRIDE for side in inner]
            corner = missing[0] // 2, missing[1] // 2
            x = self._padded(x, inner, corner)
            f4, f8, f16 = self.network.key_encoder(x)
            key, shrinkage, selection = (_tokens(m.to(self.dtype))[0] for m in self.network.key_proj(f16))
        return Frame(x, f4, f8, f16, key, shrinkage, selection, shape, inner, corner)

    def decode(
        self, frame: Frame, readout: torch.Tensor, hidden: torch.Tensor | None, update: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the memory said, (h·w, n·Cv), to probabilities (n + 1, H, W), background first, and the sensory memory (n, Ch, h, w),
        after a step where `update`."""
        with inference(self.device, self.amp):
            objects = readout.T.reshape(-1, self.network.architecture.value, *frame.grid)
            logits, hidden = self.network.decoder(frame.f4, frame.f8, frame.f16, objects, hidden, update)
        with inference(self.device):
            return aggregate(logits.to(self.dtype).sigmoid()), hidden

    def annotate(self, frame: Frame, said: torch.Tensor | None, masks: Mapping[int, np.ndarray], objects: int) -> torch.Tensor:
        """Probabilities (objects + 1, H, W) from `masks` {object 0 … : (H₀, W₀) bool}, and what was `said` (n + 1, H, W) of the objects
        without one, which yield where a mask is."""
        with inference(self.device):
            planes = torch.zeros(objects, *frame.image.shape[-2:], device=self.device, dtype=self.dtype)
            for i, mask in masks.items():
                given = torch.from_numpy(mask.astype(np.float32)).to(self.device, self.dtype)[None, None]
                resized = F.interpolate(given, size=frame.inner, mode="nearest")
                planes[i] = self._padded(resized, frame.inner, frame.corner)[0, 0]
            if said is not None:
                free = planes.sum(0) <= 0.5
                for i in set(range(len(said) - 1)) - set(masks):
                    planes[i] = said[i + 1] * free
            return aggregate(planes)

    def begin(self, frame: Frame, hidden: torch.Tensor | None, objects: int) -> torch.Tensor | None:
        """The sensory memory (objects, Ch, h, w), with zeros for those that are new; None in a network without one."""
        if not self.hidden:
            return None
        with inference(self.device):
            count = objects - (0 if hidden is None else len(hidden))
            new = torch.zeros(count, self.hidden, *frame.grid, device=self.device, dtype=self.dtype)
            return new if hidden is None else torch.cat([hidden, new])

    def remember(
        self, frame: Frame, probabilities: torch.Tensor, hidden: torch.Tensor | None, deep: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Values (h·w, n, Cv) of the frame, and the sensory memory, after its deep update where `deep`."""
        with inference(self.device, self.amp):
            encoder = self.network.value_encoder
            masks = probabilities[1:]
            values = encoder(frame.image, frame.f16, torch.stack([masks, masks.sum(0) - masks], 1))
            if deep and hidden is not None:
                hidden = encoder.hidden_reinforce(values, hidden)
            return values.flatten(2).permute(2, 0, 1).contiguous(), hidden

    def whole(self, frame: Frame, probabilities: torch.Tensor) -> torch.Tensor:
        """Probabilities (n + 1, H, W) at the frame's own size, (n + 1, H₀, W₀)."""
        (y, x), (height, width) = frame.corner, frame.inner
        with inference(self.device):
            inner = probabilities[:, y : y + height, x : x + width]
            if frame.inner == frame.shape:
                return inner
            return F.interpolate(inner[None], size=frame.shape, mode="bilinear", align_corners=False)[0]

    def answer(self, frame: Frame, probabilities: torch.Tensor) -> tuple[np.ndarray, list[tuple[float, float]]]:
        """The plane of the highest probability, (H₀, W₀) of integers, 0 the background; and per object (iou, present).

        `iou` is the IoU to expect of its mask if the probabilities are right: the sum of p over the mask, divided by the mask and the sum
        of p outside it. `present` is the logit of its surest pixel.
        """
        whole = self.whole(frame, probabilities)
        with inference(self.device):
            winner, objects = whole.max(0).indices, whole[1:]  # argmax is several times slower on a CPU
            mine = winner == torch.arange(1, len(whole), device=self.device)[:, None, None]
            inside, area = (objects * mine).sum((1, 2)), mine.sum((1, 2))
            iou = inside / (area + objects.sum((1, 2)) - inside).clamp(min=1)
            scores = torch.stack([iou, objects.amax((1, 2)).logit(SURE)], 1)
        return winner.cpu().numpy(), [(iou, present) for iou, present in scores.tolist()]

    @staticmethod
    def _padded(x: torch.Tensor, inner: tuple[int, int], corner: tuple[int, int]) -> torch.Tensor:
        """Zeros around (…, height, width), up to multiples of the stride."""
        (y, x0), (down, right) = corner, (-side % STRIDE for side in inner)
        return F.pad(x, (x0, right - x0, y, down - y))


def _tokens(maps: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) → (B, h·w, C)."""
    return maps.flatten(2).transpose(1, 2).contiguous()


def _prepared(network: Network) -> Network:
    """For inference, in place; numbers change by rounding only: batch norms go into the convolutions before them, shared
    convolutions are taken apart, weights lie channels last, which is faster on CPU and CUDA alike."""
    for module in list(network.modules()):
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1")):
            if isinstance(getattr(module, norm, None), nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, nn.Identity())
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, SharedConv):
                setattr(module, name, Halves(child))
    return network.to(memory_format=torch.channels_last)


# -- checkpoints ---------------------------------------------------------------------------------------------------------


def build(state: Mapping[str, torch.Tensor], what: str = "the checkpoint") -> Network:
    """The network whose state this is, on the CPU; `InputError` that names what was found where it is no XMem.

    Accepted as well: files without `num_batches_tracked`, and networks trained on single objects, which have no plane for the others.
    """
    network = Network(Architecture.of(state, what))
    stem = state["value_encoder.conv1.weight"]
    if stem.shape[1] == 4:
        state = {**state, "value_encoder.conv1.weight": F.pad(stem, (0, 0, 0, 0, 0, 1))}
    counters = {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
    weights.fit(network, {**counters, **state}, "XMem")
    return network


def load(model: str | Path | XMem | None = None, *, device: str = "auto", amp: bool = False) -> XMem:
    """The model of a card's name, or of a checkpoint file; the last two are kept. None is the published one if it was fetched, or else
    `vosnb-mini-xmem`, which is for vosnb's own scenes, not for real footage.

    "mini-random" is a small architecture with seeded random weights: its masks mean nothing, everything else runs. `InputError`
    where the checkpoint is not there (with the command that fetches it), or is another network's.
    """
    if isinstance(model, XMem):
        return model
    name = str(model or weights.default("xmem"))
    card = weights.cards().get(name) or next((c for c in weights.cards().values() if c.file == Path(name).name), None)
    of_ours = card.family == "xmem" if card else name == DRY_RUN or Path(name).suffix in (".pth", ".pt", ".safetensors")
    if not of_ours:
        known = ", ".join(c.name for c in weights.cards().values() if c.family == "xmem")
        raise InputError(
            f"an XMem checkpoint among {known}, {DRY_RUN}, or a .pth or .safetensors file", repr(name), "name one of these"
        )
    file = None if name == DRY_RUN else weights.path(name) if name in weights.cards() else Path(name)
    return _loaded(name, file, str(pick(device)), amp, (card and card.side) or SIDE)


@lru_cache(maxsize=2)
def _loaded(name: str, file: Path | None, device: str, amp: bool, side: int) -> XMem:
    if file is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = Network(SMALL)
    else:
        network = build(weights.load_state(file), file.name)
    return XMem(network.to(device), name, amp, side)


SMALL = Architecture(
    key_stem=16, key_stages=((1, 16), (1, 24), (2, 32)), bottleneck=2, value_stem=16, value_stages=((1, 16), (1, 24), (1, 32)),
    key=16, value=32, hidden=16, up=(32, 24, 16), update=24, squeeze=4,
)  # fmt: skip
