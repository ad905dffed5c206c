"""An oracle for the multi-pathway rule: its description, read aloud in the slowest way that works.

The rule is SAM2Long's (Ding et al., arXiv 2410.16268), written here from a description of the rule in formulas. One object
after the other, one pathway after the other, every frame and every node kept, nothing shared, nothing batched, nothing pruned.
The engine under test must agree with this; so nothing here may be taken from the engine, and nothing here is made to be fast.

`select` and `memory` are the rule itself, on plain numbers. `propagate_oracle` runs it over a network of the `sam2` package,
in float32. `build_network` makes such a network; `SMALL` makes it small enough to run a frame in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

CONDITIONING_SCORE = 10.0  # what the prompted frame counts as when memories are ranked by object score


# --- the rule, on plain numbers ---


class Candidates(NamedTuple):
    """What one pathway offers on one frame."""

    cumulative: float  # S_p of the pathway so far
    score: float  # object score o_p, a logit, > 0 = visible; one per pathway, not per mask
    ious: Sequence[float]  # predicted IoU of each candidate mask, 0 … 1; three of them in practice


class Chosen(NamedTuple):
    pathway: int  # p
    mask: int  # j
    cumulative: float  # S


def select(candidates: Sequence[Candidates], P: int, delta: float) -> list[Chosen]:
    """The P candidates that survive, in the order in which they are taken. There must be at least P of them."""
    pool = [Chosen(p, j, c.cumulative + math.log(iou + 1e-5)) for p, c in enumerate(candidates) for j, iou in enumerate(c.ious)]
    ranked = sorted(pool, key=lambda c: -c.cumulative)  # sorted() is stable: ties stay in (p, j) order
    if max(abs(c.score) for c in candidates) > delta:
        return ranked[:P]

    chosen: list[Chosen] = []
    taken: set[float] = set()
    for c in ranked:
        iou = candidates[c.pathway].ious[c.mask]
        signed = round(iou if candidates[c.pathway].score > 0 else -iou, 2)
        if len(chosen) < P and signed not in taken:
            chosen.append(c)
            taken.add(signed)
    for p in range(len(candidates)):
        if len(chosen) < P and p not in {c.pathway for c in chosen}:
            chosen.append(next(c for c in ranked if c.pathway == p))
    return chosen


class Seen(NamedTuple):
    """What the choice of memories needs to know of a node."""

    frame: int
    iou: float
    score: float


class Memory(NamedTuple):
    recalled: list[int]  # V: frames, oldest first
    spatial: list[tuple[int, int]]  # (frame, temporal code): the prompted frame, then oldest to newest
    pointers: list[tuple[int, int]]  # (frame, distance): the prompted frame, then newest to oldest
    spatial_weights: list[float]  # what the attention keys of each are multiplied by
    pointer_weights: list[float]


def memory(chain: Sequence[Seen], tau: float, t: int, s: int, max_obj_ptrs: int, num_maskmem: int = 7) -> Memory:
    """What a pathway remembers at frame t, its object prompted at frame s; `chain` holds its frames s+1 … t−1, in order."""
    assert [node.frame for node in chain] == list(range(s + 1, t))
    recalled: list[Seen] = []
    for node in reversed(chain):
        if len(recalled) < max_obj_ptrs - 1 and node.iou > tau and node.score > 0:
            recalled.insert(0, node)
    if chain and chain[-1] not in recalled:
        recalled.append(chain[-1])

    timed = recalled[-(num_maskmem - 1) :]
    spatial = [(s, num_maskmem - 1)] + [(node.frame, len(timed) - 1 - i) for i, node in enumerate(timed)]
    newest_first = recalled[:0:-1]  # without V's oldest element
    pointers = [(s, abs(t - s))] + [(node.frame, rank) for rank, node in enumerate(newest_first, start=1)]

    modulated = len(spatial) > 1
    return Memory(
        [node.frame for node in recalled],
        spatial,
        pointers,
        _weights([CONDITIONING_SCORE] + [node.score for node in timed], modulated),
        _weights([CONDITIONING_SCORE] + [node.score for node in newest_first], modulated),
    )


def _weights(scores: Sequence[float], modulated: bool) -> list[float]:
    """linspace(0.95, 1.05, n), dealt out by object score: the lowest gets the lowest."""
    if not modulated:
        return [1.0] * len(scores)
    ascending = sorted(range(len(scores)), key=lambda i: scores[i])
    entries = np.linspace(0.95, 1.05, len(scores))
    weights = [0.0] * len(scores)
    for rank, i in enumerate(ascending):
        weights[i] = float(entries[rank])
    return weights


# --- the rule, over a network ---


@dataclass(eq=False)
class Node:
    """One candidate mask kept on one frame; number 0 … P−1 among the survivors of its frame."""

    frame: int
    iou: float
    score: float
    cumulative: float
    number: int
    parent: Node | None
    logits: torch.Tensor  # (1, 1, S/4, S/4) float32, at a quarter of the model's resolution
    features: torch.Tensor  # (1, C_mem, h, w) bfloat16
    pointer: torch.Tensor  # (1, C) float32

    def ancestry(self) -> list[Node]:
        """From the prompted frame to this node."""
        return [*(self.parent.ancestry() if self.parent else []), self]


@dataclass
class Run:
    """What came out. Frames before an object's prompt are absent from its lists' mappings."""

    masks: dict[int, dict[int, np.ndarray]] = field(default_factory=dict)  # object → frame → (H, W) float32 logits
    low_res: dict[int, dict[int, np.ndarray]] = field(default_factory=dict)  # object → frame → (S/4, S/4) float32 logits
    trace: list[dict[str, Any]] = field(default_factory=list)  # per object and frame ≥ s+2, survivors in order
    memories: list[list[Memory]] = field(default_factory=list)  # beside the trace: what the pathways attended to, in order
    passes: int = 0  # decoder passes, frame s+1 included

    def labels(self, frame: int) -> np.ndarray:
        """(H, W) uint8: the object with the highest logit where that is > 0, else 0; ties go to the lower object."""
        objects = sorted(o for o in self.masks if frame in self.masks[o])
        logits = np.stack([self.masks[o][frame] for o in objects])
        return np.where(logits.max(0) > 0, np.asarray(objects)[logits.argmax(0)], 0).astype(np.uint8)


@torch.inference_mode()
def propagate_oracle(
    network: Any,
    images: Sequence[torch.Tensor],
    prompts: Mapping[int, tuple[int, np.ndarray]],
    P: int = 3,
    tau: float = 0.1,
    delta: float = 2.0,
    stop: int | None = None,
) -> Run:
    """Every object of a video, each prompted once by a mask.

    network: a SAM2Base in eval mode. images: T tensors (1, 3, S, S) float32, normalised, S = network.image_size.
    prompts: {object: (frame, (H, W) bool)}, all of the video's size. stop: end before this frame, as if the video ended
    there, save that the number of pointers still follows from T.
    """
    run = Run()
    frames = [_Frame(network, image) for image in images[:stop]]
    max_obj_ptrs = min(len(images), network.max_obj_ptrs_in_encoder)
    for obj, (s, mask) in prompts.items():
        root = _prompted(network, frames[s], s, mask)
        pathways = [root]
        for t in range(s + 1, len(frames)):
            if t == s + 1:  # one ordinary step; nothing is added up, all pathways start from here
                steps = [_step(network, frames[t], root, t, tau, max_obj_ptrs)]
                best = max(range(3), key=lambda j: steps[0].ious[j])
                chosen = [Chosen(0, best, 0.0)]
            else:
                # the sole node of s+1 is the parent of all P pathways
                pathways = pathways * P if t == s + 2 else pathways
                steps = [_step(network, frames[t], leaf, t, tau, max_obj_ptrs) for leaf in pathways]
                offers = [Candidates(leaf.cumulative, x.score, x.ious) for leaf, x in zip(pathways, steps, strict=True)]
                chosen = select(offers, P, delta)
            run.passes += len(steps)
            pathways = [_survivor(network, frames[t], pathways, steps, c, number) for number, c in enumerate(chosen)]
            if t >= s + 2:
                run.trace.append(_trace(obj, t, pathways))
                run.memories.append([x.memory for x in steps])
        reported = pathways[0].ancestry()
        run.low_res[obj] = {node.frame: node.logits[0, 0].numpy() for node in reported}
        run.masks[obj] = {node.frame: _resize(node.logits, mask.shape)[0, 0].numpy() for node in reported}
    return run


def _trace(obj: int, t: int, pathways: Sequence[Node]) -> dict[str, Any]:
    return {
        "object": obj,
        "frame": t,
        "iou": [node.iou for node in pathways],
        "object_score": [node.score for node in pathways],
        "cumulative": [node.cumulative for node in pathways],
        "chain_tail": [{str(n.frame): n.number for n in node.ancestry()[-3:]} for node in pathways],
    }


def _resize(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


class _Frame:
    """What the image encoder says of one image; sequences are (tokens, 1, C), maps are (1, C, h, w)."""

    def __init__(self, network: Any, image: torch.Tensor):
        out = network.forward_image(image)
        _, features, positions, self.sizes = network._prepare_backbone_features(out)
        self.levels = features  # finest first; the last is what memory attention reads
        self.sequence, self.position = features[-1], positions[-1]
        maps = [x.permute(1, 2, 0).reshape(1, x.shape[2], *size) for x, size in zip(features, self.sizes, strict=True)]
        self.high_res, self.map = maps[:-1], maps[-1]


def _prompted(network: Any, frame: _Frame, s: int, mask: np.ndarray) -> Node:
    """The prompt as the conditioning memory, as in SAM 2: the mask is the output, and the decoder only makes a pointer."""
    size = (network.image_size, network.image_size)
    given = torch.from_numpy(np.asarray(mask, dtype=np.float32))[None, None]
    if given.shape[-2:] != size:
        shrunk = F.interpolate(given, size=size, mode="bilinear", align_corners=False, antialias=True)
        given = (shrunk >= 0.5).float()
    _, _, _, logits, _, pointer, score = network._use_mask_as_output(frame.map, frame.high_res, given)
    # SAM 2 remembers the prompt as it is stored, at a quarter of the resolution, not as it was given
    features = _remember(network, frame, logits, score, prompted=True)
    return Node(s, 1.0, float(score), 0.0, 0, None, logits, features, pointer)


@dataclass
class _Step:
    """What one pathway finds on one frame: three candidates."""

    memory: Memory
    logits: torch.Tensor  # (1, 3, S/4, S/4)
    ious: list[float]
    score: float
    pointers: torch.Tensor  # (3, C)


def _step(network: Any, frame: _Frame, leaf: Node, t: int, tau: float, max_obj_ptrs: int) -> _Step:
    root, *chain = leaf.ancestry()
    seen = [Seen(node.frame, node.iou, node.score) for node in chain]
    m = memory(seen, tau, t, root.frame, max_obj_ptrs, network.num_maskmem)
    at = {node.frame: node for node in (root, *chain)}
    attended = _attend(network, frame, m, at, max_obj_ptrs)
    logits, ious, score, pointers = _decode(network, attended, frame.high_res)
    return _Step(m, logits, ious, score, pointers)


def _survivor(
    network: Any, frame: _Frame, pathways: Sequence[Node], steps: Sequence[_Step], chosen: Chosen, number: int
) -> Node:
    parent, step, j = pathways[chosen.pathway], steps[chosen.pathway], chosen.mask
    logits = step.logits[:, j : j + 1]
    features = _remember(network, frame, logits, torch.tensor([[step.score]]), prompted=False)
    t = parent.frame + 1
    return Node(t, step.ious[j], step.score, chosen.cumulative, number, parent, logits, features, step.pointers[j : j + 1])


def _remember(network: Any, frame: _Frame, logits: torch.Tensor, score: torch.Tensor, prompted: bool) -> torch.Tensor:
    """Memory features of one mask, in bfloat16. Whether a prompted mask is binarised first is a setting of the network."""
    features, _ = network._encode_new_memory(
        frame.levels, frame.sizes, _resize(logits, (network.image_size,) * 2), score, is_mask_from_pts=prompted
    )
    return features.to(torch.bfloat16)


def _attend(network: Any, frame: _Frame, m: Memory, at: Mapping[int, Node], max_obj_ptrs: int) -> torch.Tensor:
    """(1, C, h, w): the frame's features after memory attention. Token by token: values v, positions p, weights w."""
    v, p, w = [], [], []
    for (f, code), weight in zip(m.spatial, m.spatial_weights, strict=True):
        features = at[f].features.float()
        position = network.memory_encoder.position_encoding(features)
        v.append(features[0].flatten(1).T)
        p.append(position[0].flatten(1).T + network.maskmem_tpos_enc[code, 0])
        w.append(torch.full((len(v[-1]), 1), weight))
    spatial_tokens = sum(map(len, v))
    for (f, distance), weight in zip(m.pointers, m.pointer_weights, strict=True):
        tokens = at[f].pointer.reshape(-1, network.mem_dim)  # C / C_mem tokens a pointer
        v.append(tokens)
        p.append(_pointer_position(network, distance / (max_obj_ptrs - 1)).expand_as(tokens))
        w.append(torch.full((len(tokens), 1), weight))
    values, positions, weights = (torch.cat(x)[None] for x in (v, p, w))
    keys = weights * (values + positions)
    untimed = values.shape[1] - spatial_tokens  # pointers have no place in the image: no rotary encoding

    query_position = frame.position.transpose(0, 1)
    x = frame.sequence.transpose(0, 1)
    attention = network.memory_attention
    x = x + 0.1 * query_position if attention.pos_enc_at_input else x
    for layer in attention.layers:
        x = layer._forward_sa(x, query_position)
        q = layer.norm2(x)
        q = q + query_position if layer.pos_enc_at_cross_attn_queries else q
        x = x + layer.cross_attn_image(q=q, k=keys, v=values, num_k_exclude_rope=untimed)
        x = x + layer.linear2(layer.activation(layer.linear1(layer.norm3(x))))
    return attention.norm(x).transpose(1, 2).reshape(frame.map.shape)


def _pointer_position(network: Any, distance: float) -> torch.Tensor:
    """(C_mem,): sines and cosines of the normalised distance, projected; SAM 2.0 gives pointers no position at all."""
    if not network.add_tpos_enc_to_obj_ptrs:
        return torch.zeros(network.mem_dim)
    dim = network.hidden_dim if network.proj_tpos_enc_in_obj_ptrs else network.mem_dim
    i = torch.arange(dim // 2, dtype=torch.float32)
    angles = torch.tensor(distance) / 10000 ** (2 * (i // 2) / (dim // 2))
    return network.obj_ptr_tpos_proj(torch.cat([angles.sin(), angles.cos()]))


def _decode(
    network: Any, attended: torch.Tensor, high_res: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, list[float], float, torch.Tensor]:
    """Logits (1, 3, S/4, S/4), IoUs, object score and pointers (3, C) of the three masks, without any prompt."""
    sparse, dense = network.sam_prompt_encoder(
        points=(torch.zeros(1, 1, 2), -torch.ones(1, 1, dtype=torch.int32)), boxes=None, masks=None
    )
    logits, ious, tokens, score = network.sam_mask_decoder(
        image_embeddings=attended,
        image_pe=network.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
        repeat_image=False,
        high_res_features=high_res,
    )
    pointers = network.obj_ptr_proj(tokens[0].expand(3, -1))
    if float(score) <= 0:
        logits = torch.full_like(logits, -1024.0)
        pointers = network.no_obj_ptr.expand(3, -1)
    return logits, ious[0].tolist(), float(score), pointers


# --- networks to run it on ---

# Overrides for a network that is small in every direction: 128² pixels, 8×8 tokens, 64 channels, 2 layers of attention.
SMALL = {
    "image_size": 128,
    "image_encoder.trunk.embed_dim": 16,
    "image_encoder.trunk.stages": [1, 1, 2, 1],
    "image_encoder.trunk.global_att_blocks": [3],
    "image_encoder.neck.d_model": 64,
    "image_encoder.neck.backbone_channel_list": [128, 64, 32, 16],
    "image_encoder.neck.position_encoding.num_pos_feats": 64,
    "memory_attention.d_model": 64,
    "memory_attention.num_layers": 2,
    "memory_attention.layer.d_model": 64,
    "memory_attention.layer.dim_feedforward": 128,
    "memory_attention.layer.self_attention.embedding_dim": 64,
    "memory_attention.layer.self_attention.feat_sizes": [8, 8],
    "memory_attention.layer.cross_attention.embedding_dim": 64,
    "memory_attention.layer.cross_attention.feat_sizes": [8, 8],
    "memory_attention.layer.cross_attention.kv_in_dim": 16,
    "memory_encoder.in_dim": 64,
    "memory_encoder.out_dim": 16,
    "memory_encoder.position_encoding.num_pos_feats": 16,
    "memory_encoder.mask_downsampler.embed_dim": 64,
    "memory_encoder.fuser.layer.dim": 64,
}

# And for its weights, so that attention looks at many memories at once, the pointers among them, and logits are some tens.
SMALL_GAINS = {"neck.convs": 0.1, "memory_encoder.out_proj": 0.005}


def build_network(
    config: str = "configs/sam2.1/sam2.1_hiera_t.yaml", overrides: Mapping[str, Any] | None = None, postprocess: bool = False
) -> Any:
    """A SAM2VideoPredictor with untrained weights on the CPU; `overrides` are keys under `model`."""
    from sam2.build_sam import build_sam2_video_predictor

    extra = [f"++model.{key}={value}" for key, value in (overrides or {}).items()]
    return build_sam2_video_predictor(config, device="cpu", hydra_overrides_extra=extra, apply_postprocessing=postprocess)


def fill(network: Any, seed: int = 0, gains: Mapping[str, float] | None = None) -> Any:
    """Seeded weights under which signals neither die nor explode; `gains` multiply the tensors whose names contain a key."""
    random = np.random.default_rng(seed)
    state = network.state_dict()
    for name, old in sorted(state.items()):
        value = random.standard_normal(old.shape, dtype=np.float32)
        if old.ndim > 1 and min(old.shape) > 1 and not name.endswith("gaussian_matrix"):
            value /= math.sqrt(math.prod(old.shape[1:]))
        elif old.ndim == 1:
            value = 0.1 * value + name.endswith("weight")  # norms are near 1, biases near 0
        value *= math.prod(gain for key, gain in (gains or {}).items() if key in name)
        state[name] = torch.from_numpy(value)
    network.load_state_dict(state)
    return network


def normalised(image: Any, image_size: int) -> torch.Tensor:
    """(1, 3, S, S) float32 from a PIL image or a (H, W, 3) uint8 array, normalised by ImageNet's mean and deviation."""
    from PIL import Image

    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    pixels = np.asarray(picture.convert("RGB").resize((image_size, image_size))) / 255.0  # bicubic, then float64
    x = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    return torch.from_numpy(x).permute(2, 0, 1)[None].float()


def small_world(
    seed: int, frames: int = 14, objects: int = 1
) -> tuple[Any, list[torch.Tensor], dict[int, tuple[int, np.ndarray]]]:
    """A small network, the clip of `small_clip` and a prompt per object: what `propagate_oracle` takes.

    Its two heads are centred on this clip and amplified, so that object scores straddle 0 and ±2 and predicted IoUs differ:
    certain and uncertain frames, visible and occluded, branches that win and branches that die.
    """
    network = fill(build_network(overrides=SMALL), seed, SMALL_GAINS)
    pictures, prompts = small_clip(seed, frames, objects)
    images = [normalised(picture, network.image_size) for picture in pictures]
    return centred(network, lambda: propagate_oracle(network, images, prompts, P=1)), images, prompts


def small_clip(seed: int, frames: int = 14, objects: int = 1) -> tuple[np.ndarray, dict[int, tuple[int, np.ndarray]]]:
    """Moving discs in noise under a flickering light, (T, 60, 80, 3) uint8; an object's frame and (60, 80) bool mask."""
    y, x = np.mgrid[:60, :80]
    discs = [(18 + 15 * k, 15 + 12 * k, 3 - 2 * k) for k in range(objects)]  # centre, and speed in pixels per frame
    pictures = np.random.default_rng(seed).integers(0, 60, (frames, 60, 80, 3), dtype=np.uint8)
    for t, picture in enumerate(pictures):
        picture += np.uint8(2 * (5 * t % 8))
        for k, (cx, cy, speed) in enumerate(discs):
            picture[(x - cx - speed * t) ** 2 + (y - cy) ** 2 < 100] = (230 - 60 * k, 60, 30 + 60 * k)
    return pictures, {k + 1: (0, (x - cx) ** 2 + (y - cy) ** 2 < 100) for k, (cx, cy, _) in enumerate(discs)}


def centred(network: Any, run: Callable[[], Any]) -> Any:
    """Amplifies the heads of predicted IoU and object score, and centres them on what they say during `run`.

    Twice, for what they say changes what is remembered.
    """
    decoder = network.sam_mask_decoder
    heads = {decoder.iou_prediction_head.layers[-1]: 30.0, decoder.pred_obj_score_head.layers[-1]: 8.0}
    for head, gain in heads.items():
        head.weight.data *= gain
    for _ in range(2):
        said: dict[Any, list[torch.Tensor]] = {head: [] for head in heads}
        hooks = [head.register_forward_hook(lambda head, _, out, said=said: said[head].append(out)) for head in heads]
        run()
        for hook in hooks:
            hook.remove()
        for head, values in said.items():
            head.bias.data -= torch.cat(values).quantile(0.5, dim=0)
    return network
