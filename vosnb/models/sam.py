"""SAM and SAM 2 as image models behind one interface; networks from `segment_anything` and `sam2`, unchanged.

    N prompts (objects), C candidate masks (1 or 3), P points, S input size (1024), h = w low-resolution grid (S / 4)

Prompts of the same structure (as many points, box or not, mask or not) go through one call of prompt encoder and decoder. They
are grouped rather than padded to one structure, so that a batch gives what its prompts give one by one.
Segment Anything, Kirillov et al., ICCV 2023; SAM 2, Ravi et al., 2024, whose image predictor is matched here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..errors import InputError
from ..logits import input_shape, mask_to_logits
from ..prompts import Prompt
from . import Decoded, Encoded, weights
from .device import inference, pick, precision

__all__ = ["Sam2ImageModel", "SamModel", "build", "load"]


class _Promptable:
    """What both have in common: prompts to tensors in the network's pixels, grouped, and logits back to the image."""

    pad: bool  # how an image becomes a square: padded, or squashed
    size: int  # S
    low: tuple[int, int]  # (h, w)

    def __init__(self, network: torch.nn.Module, name: str):
        self.network, self.name = network.eval(), name

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def encode(self, image: np.ndarray) -> Encoded:
        with inference(self.device, precision(self.device)):
            return Encoded(image.shape[:2], self._features(image))

    def decode(
        self,
        encoded: Encoded,
        prompts: Sequence[Prompt],
        *,
        multimask: bool = False,
        strength: float = 18.0,
        mask_logits: Sequence[np.ndarray | None] | None = None,
    ) -> Decoded:
        """See `ImageModel.decode`. Here the grid of `low` and of `mask_logits` is S / 4, and float32 throughout.

        (In bfloat16, with 8 bits, a click would be rounded to 4 pixels of 1024; the encoder is what takes the time.)
        """
        masks = list(mask_logits) if mask_logits is not None else [None] * len(prompts)
        for i, prompt in enumerate(prompts):
            if masks[i] is None and prompt.mask is not None:
                masks[i] = mask_to_logits(prompt.mask, self.size, self.low[0], strength, self.pad)
        count = 3 if multimask else 1
        logits = np.empty((len(prompts), count, *encoded.shape), np.float32)
        iou = np.empty((len(prompts), count), np.float32)
        low = np.empty((len(prompts), count, *self.low), np.float32)
        groups: dict[tuple, list[int]] = {}
        for i, prompt in enumerate(prompts):
            groups.setdefault((len(prompt.points), prompt.box is not None, masks[i] is not None), []).append(i)
        for members in groups.values():
            points, labels, boxes = self._tensors(encoded.shape, [prompts[i] for i in members])
            mask = None if masks[members[0]] is None else self._float(np.stack([masks[i] for i in members])[:, None])
            with inference(self.device):
                raw, quality = self._heads(encoded.features, points, labels, boxes, mask, multimask)
                logits[members] = self._to_image(raw, encoded.shape).cpu().numpy()
                low[members], iou[members] = self._low(raw).cpu().numpy(), quality.cpu().numpy()
        return Decoded(logits, iou, low)

    def _tensors(self, shape: tuple[int, int], prompts: list[Prompt]) -> tuple[torch.Tensor | None, ...]:
        """points (n, P, 2), labels (n, P), boxes (n, 2, 2) of prompts of one structure, None where they have none."""
        height, width = input_shape(shape, self.size, self.pad)
        scale = np.array([width / shape[1], height / shape[0]])  # x before y
        points = labels = boxes = None
        if prompts[0].points:
            points = self._float(np.array([[(p.x, p.y) for p in prompt.points] for prompt in prompts]) * scale)
            labels = torch.tensor([[p.label for p in prompt.points] for prompt in prompts], dtype=torch.int, device=self.device)
        if prompts[0].box is not None:
            boxes = self._float(np.array([prompt.box.xyxy for prompt in prompts]).reshape(-1, 2, 2) * scale)
        return points, labels, boxes

    def _float(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)

    def _features(self, image: np.ndarray) -> Any:
        """The image embedding, float32, on the device."""
        raise NotImplementedError

    def _heads(self, features, points, labels, boxes, mask, multimask) -> tuple[torch.Tensor, torch.Tensor]:
        """Low-resolution logits (n, C, h, w) and predicted IoU (n, C)."""
        raise NotImplementedError

    def _to_image(self, raw: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """Logits (n, C, h, w) at the size of the image; `vosnb.logits.lowres_to_image` on the device."""
        if self.pad:
            height, width = input_shape(shape, self.size)
            raw = F.interpolate(raw, (self.size, self.size), mode="bilinear", align_corners=False)[..., :height, :width]
        return F.interpolate(raw, shape, mode="bilinear", align_corners=False)

    def _low(self, raw: torch.Tensor) -> torch.Tensor:
        return raw


class SamModel(_Promptable):
    """SAM (ViT-B, L, H) over a `segment_anything.modeling.Sam`; equals its `SamPredictor`."""

    pad = True

    def __init__(self, network: torch.nn.Module, name: str = "sam"):
        super().__init__(network, name)
        self.size, self.low = network.image_encoder.img_size, tuple(network.prompt_encoder.mask_input_size)

    def _features(self, image: np.ndarray) -> torch.Tensor:
        height, width = input_shape(image.shape[:2], self.size)
        resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        pixels = torch.as_tensor(resized, device=self.device).permute(2, 0, 1)[None]
        return self.network.image_encoder(self.network.preprocess(pixels)).float()

    def _heads(self, features, points, labels, boxes, mask, multimask):
        encoder = self.network.prompt_encoder
        corners = None if boxes is None else boxes.flatten(1)
        sparse, dense = encoder(points=None if points is None else (points, labels), boxes=corners, masks=mask)
        return self.network.mask_decoder(
            image_embeddings=features, image_pe=encoder.get_dense_pe(), sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense, multimask_output=multimask,
        )  # fmt: skip


class Sam2ImageModel(_Promptable):
    """SAM 2 and 2.1 on single images, over a `sam2.modeling.sam2_base.SAM2Base`; equals `SAM2ImagePredictor`."""

    pad = False

    def __init__(self, network: torch.nn.Module, name: str = "sam2"):
        super().__init__(network, name)
        self.size, self.low = network.image_size, tuple(network.sam_prompt_encoder.mask_input_size)

    def _features(self, image: np.ndarray) -> list[torch.Tensor]:
        """Feature maps from fine to coarse; the last is the image embedding."""
        pixels = torch.as_tensor(np.array(image), device=self.device).permute(2, 0, 1)[None] / 255
        pixels = F.interpolate(pixels, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        mean, std = self._float([0.485, 0.456, 0.406]), self._float([0.229, 0.224, 0.225])
        maps = self.network.forward_image((pixels - mean[:, None, None]) / std[:, None, None])["backbone_fpn"]
        maps = [m.float() for m in maps[-self.network.num_feature_levels :]]
        if self.network.directly_add_no_mem_embed:  # an image is a video's first frame: there is no memory to attend to
            maps[-1] = maps[-1] + self.network.no_mem_embed.reshape(1, -1, 1, 1)
        return maps

    def _heads(self, features, points, labels, boxes, mask, multimask):
        encoder = self.network.sam_prompt_encoder
        if boxes is not None:  # to SAM 2, a box is two points, labelled 2 and 3, before the clicks
            corners = torch.tensor([[2, 3]], dtype=torch.int, device=self.device).repeat(len(boxes), 1)
            points = boxes if points is None else torch.cat([boxes, points], dim=1)
            labels = corners if labels is None else torch.cat([corners, labels], dim=1)
        sparse, dense = encoder(points=None if points is None else (points, labels), boxes=None, masks=mask)
        raw, quality, _, _ = self.network.sam_mask_decoder(
            image_embeddings=features[-1], image_pe=encoder.get_dense_pe(), sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense, multimask_output=multimask, repeat_image=True, high_res_features=features[:-1],
        )  # fmt: skip
        return raw, quality

    def _low(self, raw: torch.Tensor) -> torch.Tensor:
        return raw.clamp(-32, 32)  # as SAM 2 passes it on


def load(name_or_path: str | Path, device: str = "auto", architecture: str | None = None) -> SamModel | Sam2ImageModel:
    """The model of a card's name, or of a checkpoint file; the last two loaded are kept. See `vosnb.models.load`."""
    name, chosen = str(name_or_path), str(pick(device))
    if name in weights.cards():
        return _loaded(name, None, chosen, architecture or name)
    file = Path(name)
    if architecture is None:
        architecture = next((card.name for card in weights.cards().values() if card.file == file.name), None)
    if architecture in weights.cards() and weights.card(architecture).family == "xmem":
        raise InputError(
            "a checkpoint of SAM or SAM 2", f"{file.name}, which is XMem's", "name another: `vosnb fetch` lists them"
        )
    if architecture is None and file.is_file():
        raise InputError(
            "a checkpoint file with its original name", file.name, "say what it holds: architecture='sam2.1_hiera_tiny', …"
        )
    return _loaded(file.stem, file.resolve(), chosen, architecture)


@lru_cache(maxsize=2)
def _loaded(name: str, file: Path | None, device: str, architecture: str) -> SamModel | Sam2ImageModel:
    """The checkpoint called `name`, or in `file`; verified and read when it is loaded, not on every use."""
    state = weights.load_state(file or weights.path(name))
    model = build(architecture, state, name)
    model.network.to(device)
    return model


def build(
    architecture: str, state: Mapping[str, torch.Tensor] | None = None, name: str | None = None
) -> SamModel | Sam2ImageModel:
    """The model of an architecture (a card's name, or a SAM 2 .yaml file), on the CPU; with random weights where `state` is
    None.

    `InputError` where the state belongs to another network.
    """
    if Path(architecture).suffix in (".yaml", ".yml"):
        model: SamModel | Sam2ImageModel = Sam2ImageModel(sam2_network(architecture), name or Path(architecture).stem)
    elif (card := weights.card(architecture)).family == "sam":
        from segment_anything import sam_model_registry

        model = SamModel(sam_model_registry[card.config](), name or card.name)
    else:
        model = Sam2ImageModel(sam2_network(card.config), name or card.name)
    if state is not None:
        weights.fit(model.network, state, architecture)
    return model


def sam2_config(name: str | Path) -> Path:
    """A SAM 2 configuration as people name it: a file on disk, or one of the package's, with or without folders and suffix.

    "configs/sam2.1/sam2.1_hiera_l.yaml", "sam2.1_hiera_l" and an absolute path all work. `InputError` where there is none.
    """
    import sam2

    package = Path(sam2.__file__).parent
    known = {file.stem: file for folder in ("sam2", "sam2.1") for file in sorted((package / "configs" / folder).glob("*.yaml"))}
    tries = (
        *([Path(__file__).with_name(str(name))] if Path(name).name == str(name) else []),  # our own
        Path(name),
        package / name,
        package / "configs" / name,
        known.get(Path(name).name.removesuffix(".yaml"), Path(name)),
    )
    for file in tries:
        if file.is_file():
            return file
    raise InputError("a SAM 2 configuration: a .yaml file, or one of " + ", ".join(known), repr(str(name)), "check the path")


def sam2_network(config: str | Path, image_size: int | None = None, postprocess: bool = True) -> torch.nn.Module:
    """A SAM 2 network with random weights from its configuration, in eval mode on the CPU, without Hydra's global state.

    `postprocess` adds what `build_sam2` adds by default: where the single mask is unstable (its area at logit +0.05 is less than
    98 % of that at −0.05), the best of three. `image_size` other than the configuration's is a multiple of 32.
    """
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    model = OmegaConf.load(sam2_config(config)).model
    if image_size is not None:
        if image_size < 64 or image_size % 32:
            raise InputError("an image_size that is a multiple of 32, 64 or more", image_size, "512 and 1024 are usual")
        model.image_size = image_size
    if postprocess:
        stability = {
            "dynamic_multimask_via_stability": True,
            "dynamic_multimask_stability_delta": 0.05,
            "dynamic_multimask_stability_thresh": 0.98,
        }
        OmegaConf.update(model, "sam_mask_decoder_extra_args", stability, merge=True)
    return instantiate(model, _recursive_=True).eval()
