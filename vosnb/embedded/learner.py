"""SAM 2's forward pass as it is trained: a batch of short clips, several objects each, a prompt on the first frame, then memory.

The calls follow Ravi et al. 2024 (SAM 2, section 4 and appendix D): promptable, with corrections; three candidates, of which the
best is taught; their IoU; whether the object is there at all. Memories carry what the network itself has said.

    V  clips    T  frames    O  objects of a clip    B = V × O    S, G, Q, C, D as in `vosnb.models.sam2`
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_utils import get_1d_sine_pe
from torch import Tensor, nn

from ..models.sam import sam2_network
from ..models.sam2 import ABSENT, CLAMP, MASK_LOGIT, MEAN, STD
from .recipe import Recipe, Stage

__all__ = ["SAM2", "Learner", "network", "prepare"]

CONFIG = Path(__file__).parents[1] / "models" / "mini.yaml"

REACH = 15  # frames, to which distances of object pointers are relative: SAM 2's 16 pointers
AREA = 0.02  # of the frame: the mask loss of smaller objects counts as that of one this large


def prepare(network: nn.Module) -> None:
    """Starting weights that shorten the way: attention begins by looking where the prompt, or the memory, lies.

    Queries and keys between prompts and image share their projections, so that the same place is the best match; the memory
    attention's constant part, under rotary encoding, prefers the same place too. (Mimetic initialisation: Trockman and Kolter 2023.)
    """
    decoder = network.sam_mask_decoder.transformer
    crossing = [a for layer in decoder.layers for a in (layer.cross_attn_token_to_image, layer.cross_attn_image_to_token)]
    for attention in (*crossing, decoder.final_attn_token_to_image):
        nn.init.orthogonal_(attention.q_proj.weight, 1.5)
        with torch.no_grad():
            attention.k_proj.weight.copy_(attention.q_proj.weight)
    for layer in network.memory_attention.layers:
        for attention in (layer.self_attn, layer.cross_attn_image):
            nn.init.constant_(attention.q_proj.bias, 0.4)
            nn.init.constant_(attention.k_proj.bias, 0.4)
    for block in network.memory_encoder.fuser.layers:
        nn.init.constant_(block.gamma, 0.1)


class Learner(nn.Module):
    """`network`: a `SAM2Base`. Called with a batch of `samples`, it gives losses and scores, scalars."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.finest = nn.Conv2d(network.hidden_dim, 32, 1)  # for learning alone: colours each object of a picture differently

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        correct = self.training and bool(
            torch.rand(()) < 0.5
        )  # half of the steps correct the first and the last frame by a click
        network, (clips, frames) = self.network, batch["images"].shape[:2]
        objects = batch["masks"].shape[2]
        owner = torch.arange(clips, device=batch["images"].device).repeat_interleave(objects)
        top, high, place, dense_loss = self.encode(batch)
        masks = batch["masks"].transpose(0, 1).flatten(1, 2)  # (T, B, S, S)
        targets = F.avg_pool2d(masks.float(), 4)  # (T, B, Q, Q), soft at the edges
        points, labels, guess, given = (batch[key].flatten(0, 1) for key in ("points", "labels", "guess", "given"))
        memories: list[Tensor] = []
        pointers: list[Tensor] = []
        found = []
        for t in range(frames):
            finer = [maps[:, t][owner] for maps in high]
            picture = top[:, t][owner]
            if t == 0:
                seen = picture + network.no_mem_embed.view(1, -1, 1, 1)
                logits, iou, tokens, present = self.ask(seen, finer, points, labels, guess)
                several = (labels >= 0).sum(1) == 1
            else:
                seen = self.attend(picture, place, memories, pointers)
                logits, iou, tokens, present = self.decode(seen, finer, *_nothing(points, labels))
                several = torch.ones_like(given)
            found.append(self.judge(logits, iou, present, targets[t]))
            if correct and t in (0, frames - 1):
                chosen, _ = self.choose(logits, iou, tokens, several)
                earlier = chosen.detach().clamp(-CLAMP, CLAMP)
                more = self.click(chosen, targets[t])
                asked = (points, labels) if t == 0 else (points[:, :0], labels[:, :0])
                logits, iou, tokens, present = self.ask(seen, finer, *asked, earlier, more)
                several = torch.zeros_like(given)
                found.append(self.judge(logits, iou, present, targets[t]))
            if t + 1 < frames:
                chosen, token = self.choose(logits, iou, tokens, several)
                there = present[:, 0] > 0
                pointer = self.pointer(token, there)
                if t == 0 and given.any():
                    chosen = torch.where(given[:, None, None], targets[0] * 2 * MASK_LOGIT - MASK_LOGIT, chosen)
                    there = there | given
                    pointer = torch.where(given[:, None], self.as_given(picture, finer, masks[0], points, labels), pointer)
                memories.append(self.remember(picture, chosen.detach(), there))
                pointers.append(pointer)
        result = {key: torch.stack([f[key] for f in found]).mean() for key in found[0]}
        return {**result, "dense": dense_loss, "first": found[0]["single"]}

    # -- the network's parts -------------------------------------------------------------------------------------------

    def encode(self, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
        """The coarsest features (V, T, C, G, G), the two finer maps, the position code, and the loss of the finest map."""
        images = batch["images"]
        clips, frames = images.shape[:2]
        mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (MEAN, STD))
        pixels = (images.flatten(0, 1).permute(0, 3, 1, 2).float() / 255 - mean) / std
        found = self.network.image_encoder(pixels)
        s0, s1, top = found["backbone_fpn"][-3:]
        decoder = self.network.sam_mask_decoder
        dense = self.apart(self.finest(s0), batch["masks"].flatten(0, 1))
        maps = [m.unflatten(0, (clips, frames)) for m in (top, decoder.conv_s0(s0), decoder.conv_s1(s1))]
        return maps[0], maps[1:], found["vision_pos_enc"][-1][:1], dense

    def apart(self, colours: Tensor, masks: Tensor) -> Tensor:
        """How badly each object's mean feature tells its own pixels from the others: the picture's own prototypes.

        colours (N, 32, Q, Q), masks (N, O, S, S).
        """
        target = F.avg_pool2d(masks.float(), 4)
        colours = F.normalize(colours, dim=1)
        mean = torch.einsum("nchw,nohw->noc", colours, target) / target.sum((2, 3)).clamp(min=1)[..., None]
        logits = 10 * torch.einsum("nchw,noc->nohw", colours, mean) - 5
        seen = target.amax((2, 3)) > 0.5
        return (_mask_loss(logits, target) * seen).sum() / seen.sum().clamp(min=1)

    def ask(
        self, seen: Tensor, high: list[Tensor], points: Tensor, labels: Tensor, guess: Tensor, more: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Prompts of different kinds, each kind as it is sent when there is no other: boxes, clicks, or poor masks alone; with `more`,
        every one has a click and an earlier mask beside it. Returns what `decode` does."""
        counts = (labels >= 0).sum(1)
        order, parts = [], []
        for count in counts.unique().tolist():
            rows = (counts == count).nonzero()[:, 0]
            asked = points[rows, :count], labels[rows, :count]
            if more is not None:
                asked = torch.cat([asked[0], more[0][rows]], 1), torch.cat([asked[1], more[1][rows]], 1)
            mask = None if count and more is None else guess[rows]
            parts.append(self.decode(seen[rows], [maps[rows] for maps in high], *asked, mask))
            order.append(rows)
        back = torch.cat(order).argsort()
        return tuple(torch.cat(part)[back] for part in zip(*parts, strict=True))

    def decode(
        self, seen: Tensor, high: list[Tensor], points: Tensor, labels: Tensor, guess: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Four masks (B, 4, Q, Q), the single one first; IoU (B, 4), tokens (B, 4, C), presence (B, 1)."""
        prompts = self.network.sam_prompt_encoder
        sparse, dense = prompts(
            points=(points, labels) if points.shape[1] else None, boxes=None, masks=None if guess is None else guess[:, None]
        )
        logits, iou, tokens, present = self.network.sam_mask_decoder.predict_masks(
            image_embeddings=seen, image_pe=prompts.get_dense_pe(), sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense, repeat_image=False, high_res_features=high,
        )  # fmt: skip
        return logits.float(), iou.float(), tokens, present.float()

    def attend(self, picture: Tensor, place: Tensor, memories: list[Tensor], pointers: list[Tensor]) -> Tensor:
        """The frame in the light of the first memory and of the latest, and of all pointers: (B, C, G, G)."""
        network, now = self.network, len(memories)
        slots = network.num_maskmem - 1
        recalled = [(0, slots), *((i, now - i - 1) for i in range(max(1, now - slots), now))]
        tokens, codes = [], []
        for i, code in recalled:
            memory = memories[i]
            tokens.append(_tokens(memory))
            codes.append(
                _tokens(network.memory_encoder.position_encoding(memory)) + network.maskmem_tpos_enc[code].view(1, 1, -1)
            )
        split, width = network.hidden_dim // network.mem_dim, network.mem_dim
        told = torch.stack(pointers, 1).reshape(len(picture), -1, width)
        far = torch.arange(now, 0, -1, device=picture.device) / REACH
        far = network.obj_ptr_tpos_proj(get_1d_sine_pe(far, dim=network.hidden_dim))
        far = far[None].expand(len(picture), -1, -1).repeat_interleave(split, 1)
        memory, code = torch.cat([*tokens, told], 1), torch.cat([*codes, far], 1)
        seen = network.memory_attention(
            curr=_tokens(picture).transpose(0, 1), curr_pos=_tokens(place).transpose(0, 1).expand(-1, len(picture), -1),
            memory=memory.transpose(0, 1), memory_pos=code.transpose(0, 1), num_obj_ptr_tokens=told.shape[1],
        )  # fmt: skip
        return seen.permute(1, 2, 0).reshape(picture.shape)

    def remember(self, picture: Tensor, logits: Tensor, there: Tensor) -> Tensor:
        network, encoder = self.network, self.network.memory_encoder
        logits = torch.where(there[:, None, None], logits, ABSENT)
        mask = F.interpolate(logits[:, None], scale_factor=4, mode="bilinear", align_corners=False).sigmoid()
        mask = mask * network.sigmoid_scale_for_mem_enc + network.sigmoid_bias_for_mem_enc
        memory = encoder.out_proj(encoder.fuser(encoder.pix_feat_proj(picture) + encoder.mask_downsampler(mask)))
        return memory + (~there[:, None, None, None]).float() * network.no_obj_embed_spatial[..., None, None]

    def pointer(self, token: Tensor, there: Tensor) -> Tensor:
        share = there[:, None].float()
        return share * self.network.obj_ptr_proj(token) + (1 - share) * self.network.no_obj_ptr

    def as_given(self, picture: Tensor, high: list[Tensor], mask: Tensor, points: Tensor, labels: Tensor) -> Tensor:
        """The pointers of true masks (B, S, S), taken as they are."""
        small = self.network.mask_downsample(mask[:, None].float())[:, 0]
        _, _, tokens, present = self.decode(picture, high, *_nothing(points, labels), small)
        return self.pointer(tokens[:, 0], present[:, 0] > 0)

    # -- what it said, and what it should have said ----------------------------------------------------------------------

    def choose(self, logits: Tensor, iou: Tensor, tokens: Tensor, several: Tensor) -> tuple[Tensor, Tensor]:
        """The mask (B, Q, Q) and token (B, C) that count: the single one, or the candidate of the highest predicted IoU."""
        pick = torch.where(several, iou[:, 1:].argmax(1) + 1, 0)
        rows = torch.arange(len(pick), device=pick.device)
        return logits[rows, pick], tokens[rows, pick]

    def click(self, chosen: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """A click (B, 1, 2) somewhere where the mask is wrong, and its label (B, 1)."""
        truth = target > 0.5
        wrong = ((chosen > 0) != truth).flatten(1)
        pick = ((wrong + 1e-3) * torch.rand(wrong.shape, device=wrong.device)).argmax(1)
        side = truth.shape[-1]
        at = torch.stack([pick % side, pick // side], -1) * 4.0 + 1.5
        return at[:, None], truth.flatten(1).gather(1, pick[:, None]).int()

    def judge(self, logits: Tensor, iou: Tensor, present: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Losses of a frame: masks and IoU where the object is there, presence everywhere; and the IoU reached."""
        there = target.flatten(1).amax(1) > 0.5
        count = there.sum().clamp(min=1)
        loss = _mask_loss(logits, target[:, None].expand_as(logits))
        mask = loss[:, 0] + loss[:, 1:].amin(1)
        with torch.no_grad():
            inside, truth = logits > 0, (target > 0.5)[:, None]
            reached = (inside & truth).sum((2, 3)) / (inside | truth).sum((2, 3)).clamp(min=1)
            chosen = reached[:, 1:].gather(1, iou[:, 1:].argmax(1, keepdim=True))[:, 0]
        quality = (iou - reached).abs().mean(1)
        return {
            "mask": (mask * there).sum() / count,
            "quality": (quality * there).sum() / count,
            "presence": F.binary_cross_entropy_with_logits(present[:, 0], there.float()),
            "single": (reached[:, 0] * there).sum() / count,
            "chosen": (chosen * there).sum() / count,
            "best": (reached[:, 1:].amax(1) * there).sum() / count,
        }


def _nothing(points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The point that is none, which SAM 2 gives to frames without a prompt."""
    return points.new_zeros(len(points), 1, 2), labels.new_full((len(labels), 1), -1)


def _tokens(maps: Tensor) -> Tensor:
    """(B, C, G, G) → (B, G², C)."""
    return maps.flatten(2).transpose(1, 2)


def _mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy, over the object's area rather than the frame's, and Dice; (…, Q, Q) → (…)."""
    area = target.mean((-2, -1))
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((-2, -1)) / area.clamp(min=AREA)
    inside = logits.sigmoid()
    overlap = (inside * target).sum((-2, -1))
    dice = 1 - (2 * overlap + 1) / (inside.sum((-2, -1)) + target.sum((-2, -1)) + 1)
    return entropy + dice


def network(side: int) -> nn.Module:
    """The small network for pictures of this side; its last block looks at all of them, without padding to the full size."""
    made = sam2_network(CONFIG, side, postprocess=False)
    last = made.image_encoder.trunk.blocks[-1]
    last.window_size = min(last.window_size, side // 16)
    return made


def _learner(side: int) -> Learner:
    learner = Learner(network(side))
    prepare(learner.network)
    return learner


def _inner(learner: nn.Module) -> list[Tensor]:
    """The matrices within: not embeddings, norms, biases."""
    outer = ("embed", "token", "no_mem", "no_obj", "tpos")
    return [
        p for name, p in learner.named_parameters() if p.ndim == 2 and min(p.shape) > 1 and not any(o in name for o in outer)
    ]


SAM2 = Recipe(
    checkpoint="vosnb-mini-sam2",
    stages=(
        Stage("images", 2000, clips=24, frames=1, objects=3, side=128, rate=(2.0e-3, 4e-4)),
        Stage("pairs", 300, clips=8, frames=2, objects=3, side=128, rate=(1e-3, 1e-3)),
        Stage("clips", 1000, clips=3, frames=8, objects=3, side=128, rate=(1e-3, 2e-4)),
        Stage("large", 380, clips=2, frames=8, objects=2, side=256, rate=(3e-4, 1e-5)),
        Stage("more", 600, clips=8, frames=8, objects=3, side=256, rate=(4e-4, 1e-6)),
    ),
    learner=_learner,
    losses={"mask": 1.0, "quality": 0.5, "presence": 2.0, "dense": 0.5},
    inner=_inner,
    shown={
        "single": "learned: one mask", "chosen": "learned: chosen of three", "held_first": "held out: first frame",
        "held_chosen": "held out: four frames, chosen of three",
    },
)  # fmt: skip
