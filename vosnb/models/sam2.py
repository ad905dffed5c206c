"""SAM 2's networks as pure functions: encode, attend, decode, prompt, remember. Weights are held here, state is the caller's.

The modules are the `sam2` package's own (Ravi et al. 2024); the calls between them are ours, so that a frame is encoded once and any
mix of objects and pathways goes through one call. Dimensions:

    B  objects × pathways in one call      S  side of the model's input (1024)     G = S / 16  side of the grid of tokens
    C  width of the features (256)         D  width of a memory (64)               Q = S / 4   side of the low-resolution logits
    M  candidate masks (3, or 1)           N  spatial memories, K  object pointers of C / D tokens each
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sam2.modeling.position_encoding import compute_axial_cis
from sam2.modeling.sam2_utils import get_1d_sine_pe

from ..errors import InputError
from ..logits import fill_holes
from ..prompts import Prompt
from . import weights
from .device import pick
from .sam import sam2_config, sam2_network

ABSENT = -1024.0  # logits of an object that is not there
MASK_LOGIT = 10.0  # a given mask becomes logits of ± this much
HOLE = 8  # low-resolution pixels: the largest hole that post-processing fills
CLAMP = 32.0  # earlier logits, fed back beside a click, are clamped to ± this much
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCRATCH = 1 << 24  # elements of the attention matrix that are held at once on a CPU


@dataclass(frozen=True)
class Features:
    """One encoded frame: `top` (1, C, G, G); `high` the two finer maps for the decoder; `start` (1, G², C) is `top` after the part of
    the memory attention that does not look at memories yet, the same for all pathways."""

    top: torch.Tensor
    high: list[torch.Tensor] | None
    start: torch.Tensor


@dataclass(frozen=True)
class Decoded:
    """`logits` (B, M, Q, Q) float32; `iou` (B, M) predicted; `present` (B,) object score, a logit; `tokens` (B, M or 1, C)."""

    logits: torch.Tensor
    iou: torch.Tensor
    present: torch.Tensor
    tokens: torch.Tensor


@dataclass(frozen=True)
class Answer:
    """A prompted frame's one mask: `logits` (1, 1, Q, Q), `iou` (1,), `present` (1,), `pointer` (1, C)."""

    logits: torch.Tensor
    iou: torch.Tensor
    present: torch.Tensor
    pointer: torch.Tensor


class Sam2:
    """`network`: a `SAM2Base`, in eval mode, on its device. `postprocess` as in the `sam2` package: masks from prompts are binarised
    before they are remembered, and holes of up to 8 low-resolution pixels are filled in them and in what is reported. `compile`: the parts
    of fixed shape, the image and memory encoders and the mask decoder, go through torch.compile."""

    def __init__(self, network: torch.nn.Module, name: str = "sam2", postprocess: bool = False, compile: bool = False):
        self.network, self.name, self.postprocess = network.eval(), name, postprocess
        self.size: int = network.image_size
        self.grid, self.low = self.size // network.backbone_stride, self.size // network.backbone_stride * 4
        self.slots: int = network.num_maskmem - 1
        self.max_pointers: int = network.max_obj_ptrs_in_encoder
        device = self.device
        attention = network.memory_attention.layers[0].self_attn
        self.rope = compute_axial_cis(attention.internal_dim // attention.num_heads, self.grid, self.grid).to(device)
        with torch.inference_mode():
            self.memory_pos = _tokens(
                network.memory_encoder.position_encoding(torch.zeros(1, network.mem_dim, self.grid, self.grid, device=device))
            )
            self.image_pe = network.sam_prompt_encoder.get_dense_pe()
            nothing = torch.zeros(1, 1, 2, device=device), -torch.ones(1, 1, dtype=torch.int32, device=device)
            self.unprompted = network.sam_prompt_encoder(points=nothing, boxes=None, masks=None)
        if compile:
            self._encoder, self._fuse, self._decoder = map(torch.compile, (self._encoder, self._fuse, self._decoder))
        self.mean, self.std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, STD))

    @property
    def device(self) -> torch.device:
        return self.network.no_mem_embed.device

    # -- one frame -------------------------------------------------------------------------------------------------

    def encode(self, image: np.ndarray) -> Features:
        """(H, W, 3) uint8 RGB to features. The frame is squashed to S × S (bicubic, as SAM 2's own loader does)."""
        pixels = np.array(Image.fromarray(image).resize((self.size, self.size)))
        batch = torch.from_numpy(pixels).to(self.device).permute(2, 0, 1)[None].float() / 255
        maps, pos = self._encoder((batch - self.mean) / self.std)
        top = maps[-1]
        attention = self.network.memory_attention
        start = _tokens(top)
        if attention.pos_enc_at_input:
            start = start + 0.1 * _tokens(pos)
        return Features(
            top,
            maps[-3:-1] if self.network.use_high_res_features_in_sam else None,
            self._look_around(attention.layers[0], start),
        )

    def attend(
        self,
        features: Features,
        memories: torch.Tensor,
        codes: Sequence[Sequence[int]],
        pointers: torch.Tensor | None,
        distances: Sequence[Sequence[float]],
        reach: int,
        weights: Sequence[tuple[Sequence[float], Sequence[float]]] | None = None,
    ) -> torch.Tensor:
        """The frame in the light of B memories: (B, C, G, G).

        `memories` (B, N, D, G, G) with temporal `codes` (B × N; −1 is the untimed slot), `pointers` (B, K, C) at `distances` (B × K,
        in frames, divided by `reach`), `weights` (B × (N, K)) on the attention keys.
        """  # fmt: skip
        network, device = self.network, self.device
        batch, count = memories.shape[:2]
        code = torch.tensor([[c % network.num_maskmem for c in row] for row in codes], device=device)
        memory = memories.float().flatten(3).transpose(2, 3)  # (B, N, G², D)
        pos = self.memory_pos[:, None] + network.maskmem_tpos_enc[code].view(batch, count, 1, -1)
        memory, pos = memory.flatten(1, 2), pos.flatten(1, 2)
        told = 0
        if pointers is not None and pointers.shape[1]:
            split = network.hidden_dim // network.mem_dim
            tokens = pointers.reshape(batch, -1, network.mem_dim)
            memory = torch.cat([memory, tokens], dim=1)
            pos = torch.cat([pos, self._far(distances, reach).repeat_interleave(split, dim=1)], dim=1)
            told = tokens.shape[1]
        keys = memory + pos
        if weights is not None:
            space = torch.tensor([w for w, _ in weights], device=device).repeat_interleave(self.grid**2, dim=1)
            point = torch.tensor([w for _, w in weights], device=device)
            if told:
                space = torch.cat([space, point.repeat_interleave(told // point.shape[1], dim=1)], dim=1)
            keys = keys * space[..., None]
        return self._through(features.start.expand(batch, -1, -1), memory, keys, told)

    def decode(
        self,
        features: Features,
        seen: torch.Tensor,
        prompt: tuple[torch.Tensor, torch.Tensor] | None = None,
        multimask: bool = True,
    ) -> Decoded:
        """`seen` (B, C, G, G) to candidate masks; `prompt` are sparse and dense embeddings, none while tracking."""
        sparse, dense = prompt or self.unprompted
        batch = seen.shape[0]
        logits, iou, tokens, present = self._decoder(
            seen, sparse.expand(batch, -1, -1), dense.expand(batch, -1, -1, -1), features.high, multimask
        )
        if self.network.pred_obj_scores:
            logits = torch.where(present[:, :, None, None] > 0, logits, ABSENT)
        return Decoded(logits.float(), iou.float(), present[:, 0].float(), tokens)

    @property
    def tracks_with_candidates(self) -> bool:
        """Whether tracking without a prompt yields three candidates (SAM 2's released models do) or one."""
        return self.network._use_multimask(is_init_cond_frame=False, point_inputs=None)

    def pointer(self, tokens: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Object pointers (B, C) from the chosen masks' tokens (B, C) and whether the object is there (B,) bool."""
        network = self.network
        pointer = network.obj_ptr_proj(tokens)
        if not network.pred_obj_scores:
            return pointer
        there = present[:, None].to(pointer.dtype)
        return (there * pointer if network.fixed_no_obj_ptr else pointer) + (1 - there) * network.no_obj_ptr

    def remember(self, features: Features, logits: torch.Tensor, present: torch.Tensor, binarize: bool = False) -> torch.Tensor:
        """Memories (B, D, G, G) bfloat16 of masks, logits (B, 1, Q, Q), `present` (B,) bool."""
        network = self.network
        mask = F.interpolate(logits, size=(self.size, self.size), mode="bilinear", align_corners=False)
        mask = (mask > 0).float() if binarize else mask.sigmoid()
        mask = mask * network.sigmoid_scale_for_mem_enc + network.sigmoid_bias_for_mem_enc
        memory = self._fuse(features.top, mask)
        if network.no_obj_embed_spatial is not None:
            memory = memory + (~present[:, None, None, None]).to(memory.dtype) * network.no_obj_embed_spatial[..., None, None]
        return memory.to(torch.bfloat16)

    def filled(self, logits: torch.Tensor) -> torch.Tensor:
        """(Q, Q) logits as they are shown and, on prompted frames, remembered: with `postprocess`, without small holes."""
        if not self.postprocess:
            return logits
        return torch.from_numpy(fill_holes(logits.cpu().numpy(), HOLE)).to(logits.device)

    # -- the network's parts of fixed shape ------------------------------------------------------------------------

    def _encoder(self, batch: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        found = self.network.forward_image(batch)
        return found["backbone_fpn"], found["vision_pos_enc"][-1]

    def _decoder(
        self, seen: torch.Tensor, sparse: torch.Tensor, dense: torch.Tensor, high: list[torch.Tensor] | None, multimask: bool
    ):
        return self.network.sam_mask_decoder(
            image_embeddings=seen, image_pe=self.image_pe, sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense,
            multimask_output=multimask, repeat_image=False, high_res_features=high,
        )  # fmt: skip

    def _fuse(self, top: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        encoder = self.network.memory_encoder
        return encoder.out_proj(encoder.fuser(encoder.pix_feat_proj(top) + encoder.mask_downsampler(mask)))

    # -- prompts ---------------------------------------------------------------------------------------------------

    def prompt(
        self,
        features: Features,
        prompt: Prompt,
        shape: tuple[int, int],
        seen: torch.Tensor | None = None,
        earlier: torch.Tensor | None = None,
    ) -> Answer:
        """One object's prompt to its mask, the one of highest predicted IoU where the model offers candidates.

        `seen` (1, C, G, G) and `earlier` (1, 1, Q, Q) logits: what tracking made of this frame, when the prompt corrects it. A mask
        alone is taken as it is; a mask beside points or a box is an earlier guess. `shape` is the frame's (H, W).
        """  # fmt: skip
        network = self.network
        points = self._points(prompt, shape)
        if points is None:
            return self._as_given(features, self._mask(prompt.mask))
        if prompt.mask is not None:
            earlier = _as_logits(self._mask(prompt.mask), self.low)
        if earlier is not None:
            earlier = earlier.clamp(-CLAMP, CLAMP)
        multimask = network._use_multimask(seen is None, {"point_labels": points[1]})
        embedded = network.sam_prompt_encoder(points=points, boxes=None, masks=earlier)
        if seen is None:
            seen = features.top + network.no_mem_embed.view(1, -1, 1, 1)
        found = self.decode(features, seen, embedded, multimask)
        best = found.iou[0].argmax()
        token = found.tokens[:, best if found.tokens.shape[1] > 1 else 0]
        return Answer(found.logits[:, best][:, None], found.iou[:, best], found.present, self.pointer(token, found.present > 0))

    def _as_given(self, features: Features, mask: torch.Tensor) -> Answer:
        """A mask (1, 1, S, S) as the answer; only its pointer comes from the decoder."""
        network = self.network
        small = network.mask_downsample(mask)
        if small.shape[-2:] != network.sam_prompt_encoder.mask_input_size:
            small = _shrunk(small, self.low)
        nothing = torch.zeros(1, 1, 2, device=self.device), -torch.ones(1, 1, dtype=torch.int32, device=self.device)
        embedded = network.sam_prompt_encoder(points=nothing, boxes=None, masks=small)
        found = self.decode(features, features.top, embedded, multimask=False)
        pointer = self.pointer(found.tokens[:, 0], found.present > 0)
        there = mask.flatten(1).any(1)
        if network.pred_obj_scores:  # the rule for absent objects once more, now by the mask itself, as SAM 2 has it
            pointer = (there[:, None] * pointer if network.fixed_no_obj_ptr else pointer) + (~there)[
                :, None
            ] * network.no_obj_ptr
        return Answer(
            _as_logits(mask, self.low), torch.ones(1, device=self.device), torch.where(there, MASK_LOGIT, -MASK_LOGIT), pointer
        )

    def _points(self, prompt: Prompt, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Box corners (labels 2 and 3), then points, in the model's pixels."""
        corners = [] if prompt.box is None else [(prompt.box.x0, prompt.box.y0, 2), (prompt.box.x1, prompt.box.y1, 3)]
        rows = [*corners, *((p.x, p.y, p.label) for p in prompt.points)]
        if not rows:
            return None
        height, width = shape
        at = torch.tensor([[x, y] for x, y, _ in rows]) / torch.tensor([width, height]) * self.size
        return at[None].to(self.device), torch.tensor([[label for *_, label in rows]], dtype=torch.int32, device=self.device)

    def _mask(self, mask: np.ndarray) -> torch.Tensor:
        """(H, W) bool to (1, 1, S, S) float 0 or 1."""
        given = torch.from_numpy(mask.astype(np.float32)).to(self.device)[None, None]
        return given if given.shape[-2:] == (self.size, self.size) else (_shrunk(given, self.size) >= 0.5).float()

    # -- memory attention ------------------------------------------------------------------------------------------

    def _far(self, distances: Sequence[Sequence[float]], reach: int) -> torch.Tensor:
        """What is added to pointers for their distances, (B, K, D); SAM 2.0 adds nothing."""
        network = self.network
        if not network.add_tpos_enc_to_obj_ptrs:
            return torch.zeros(len(distances), len(distances[0]), network.mem_dim, device=self.device)
        width = network.hidden_dim if network.proj_tpos_enc_in_obj_ptrs else network.mem_dim
        return network.obj_ptr_tpos_proj(get_1d_sine_pe(torch.tensor(distances, device=self.device) / reach, dim=width))

    def _look_around(self, layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        """A layer's self-attention over the frame's own tokens, (B, G², C)."""
        y, attention = layer.norm1(x), layer.self_attn
        return x + attention.out_proj(
            _attention(self._turned(attention.q_proj(y)), self._turned(attention.k_proj(y)), attention.v_proj(y))
        )

    def _through(self, x: torch.Tensor, memory: torch.Tensor, keys: torch.Tensor, told: int) -> torch.Tensor:
        """All layers; x (B, G², C) has been through the first self-attention. `told`: how many of the last keys have no place."""
        attention = self.network.memory_attention
        for i, layer in enumerate(attention.layers):
            if i:
                x = self._look_around(layer, x)
            cross = layer.cross_attn_image
            q, k = self._turned(cross.q_proj(layer.norm2(x))), cross.k_proj(keys)
            placed = k.shape[1] - told
            k = torch.cat([self._turned(k[:, :placed]), k[:, placed:]], dim=1)
            # attention weights add up to 1 and the values are linear in the memory, so it is enough to average the memory itself,
            # a quarter as wide, and to project the average
            x = x + cross.out_proj(cross.v_proj(_attention(q, k, memory)))
            x = x + layer.linear2(layer.activation(layer.linear1(layer.norm3(x))))
        return attention.norm(x).transpose(1, 2).unflatten(2, (self.grid, self.grid))

    def _turned(self, x: torch.Tensor) -> torch.Tensor:
        """Rotary position encoding over whole grids of tokens, (B, n·G², C)."""
        pairs = torch.view_as_complex(x.float().unflatten(1, (-1, self.grid**2)).unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self.rope).flatten(-2).flatten(1, 2).type_as(x)


def _tokens(maps: torch.Tensor) -> torch.Tensor:
    """(B, C, G, G) → (B, G², C)."""
    return maps.flatten(2).transpose(1, 2)


def _shrunk(maps: torch.Tensor, side: int) -> torch.Tensor:
    return F.interpolate(maps.float(), size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def _as_logits(mask: torch.Tensor, side: int) -> torch.Tensor:
    return _shrunk(mask * 2 * MASK_LOGIT - MASK_LOGIT, side)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q kᵀ / √C) v for one head: q (B, Nq, C), k (B, Nk, C), v (B, Nk, any width)."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None].type_as(q))[:, 0]
    rows = min(q.shape[1], max(1, SCRATCH // k.shape[1]))
    q, out, scratch = q / math.sqrt(q.shape[-1]), q.new_empty(*q.shape[:2], v.shape[-1]), q.new_empty(rows, k.shape[1])
    for b in range(len(q)):
        for i in range(0, q.shape[1], rows):
            part = scratch[: q.shape[1] - i]
            torch.mm(q[b, i : i + rows], k[b].T, out=part)
            torch.mm(torch.softmax(part, -1, out=part), v[b], out=out[b, i : i + rows])
    return out


def load(
    model: str | Path | Sam2 | None = None,
    config: str | Path | None = None,
    *,
    image_size: int | None = None,
    device: str = "auto",
    postprocess: bool = False,
    compile: bool = False,
) -> Sam2:
    """The tracking model of a card's name, or of a checkpoint file with its `config`; the last two are kept.

    None is the largest SAM 2.1 that was fetched, or else `vosnb-mini-sam2`, which is for vosnb's own scenes, not for real footage.
    `InputError` where the checkpoint is not there (with the command that fetches it), or holds the weights of another network.
    """  # fmt: skip
    if isinstance(model, Sam2):
        if config is not None or image_size not in (None, model.size) or (postprocess and not model.postprocess) or compile:
            given = "config, image_size, postprocess or compile beside it"
            raise InputError("a loaded model as it is", given, "give these to models.sam2.load")
        return model
    name, wanted = str(model or weights.default()), str(pick(device))
    card = weights.cards().get(name) or next((c for c in weights.cards().values() if c.file == Path(name).name), None)
    if config is None and (card is None or card.family != "sam2"):
        tracked = ", ".join(c.name for c in weights.cards().values() if c.family == "sam2")
        raise InputError(
            f"a SAM 2 checkpoint among {tracked}, or a file and its config",
            repr(name),
            "name one of these, or give config=….yaml",
        )
    file = weights.path(name) if name in weights.cards() else Path(name)
    return _loaded(name, str(file), str(sam2_config(config or card.config)), image_size, wanted, postprocess, compile)


@lru_cache(maxsize=2)
def _loaded(name: str, file: str, config: str, image_size: int | None, device: str, postprocess: bool, compiled: bool) -> Sam2:
    network = sam2_network(config, image_size, postprocess)
    weights.fit(network, weights.load_state(file), Path(config).stem)
    return Sam2(network.to(device), name, postprocess, compiled)
