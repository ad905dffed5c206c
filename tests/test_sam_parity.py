"""Ours equals theirs: the same network with seeded random weights, through our path and through Meta's predictors."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from vosnb.errors import InputError
from vosnb.logits import mask_to_box, mask_to_logits
from vosnb.prompts import Box, Point, Prompt

torch = pytest.importorskip("torch")
pytest.importorskip("segment_anything")
sam2 = pytest.importorskip("sam2")

from vosnb.models import load, sam, weights  # noqa: E402
from vosnb.models.device import inference, pick, precision  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = [(90, 160), (150, 70)]  # wide, and tall: the padding is at the bottom, and at the right
CLICKS = (Point(20.5, 30), Point(60, 80, 0), Point(33, 12))
BOX = Box(10, 12, 50, 71)


def disc(shape):
    rows, columns = np.indices(shape)
    return (rows - 40) ** 2 + (columns - 35) ** 2 < 25**2


def image_of(shape):
    return np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)


def with_weights(network):
    """Random weights with which prompts matter: the default initialisation gives almost constant logits."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.ndim > 1 and "trunk" not in name and "image_encoder" not in name:
                value.mul_(1 + torch.rand(value.shape, generator=generator))
            elif value.ndim == 1 and name.endswith("bias"):
                value.normal_(0, 0.1, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def small_sam():
    """A Sam of 128 pixels, with everything that the large ones have."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    torch.manual_seed(0)
    network = Sam(
        ImageEncoderViT(
            img_size=128, patch_size=16, embed_dim=32, depth=2, num_heads=2, out_chans=32, use_rel_pos=True, window_size=4,
            global_attn_indexes=(1,),
        ),
        PromptEncoder(embed_dim=32, image_embedding_size=(8, 8), input_image_size=(128, 128), mask_in_chans=16),
        MaskDecoder(transformer_dim=32, transformer=TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=2)),
    )  # fmt: skip
    return sam.SamModel(with_weights(network))


@pytest.fixture(scope="module")
def config256(tmp_path_factory):
    """SAM 2.1 tiny's configuration file, for images of 256 pixels."""
    text = (Path(sam2.__file__).parent / weights.card("sam2.1_hiera_tiny").config).read_text()
    assert "image_size: 1024" in text
    file = tmp_path_factory.mktemp("config") / "tiny256.yaml"
    file.write_text(text.replace("image_size: 1024", "image_size: 256"))
    return file


@pytest.fixture(scope="module")
def small_sam2(config256):
    torch.manual_seed(0)
    model = sam.build(str(config256))
    with_weights(model.network)
    return model


@pytest.fixture(params=["small_sam", "small_sam2"])
def model(request):
    return request.getfixturevalue(request.param)


def predictor_of(model, image):
    if isinstance(model, sam.SamModel):
        from segment_anything import SamPredictor

        predictor = SamPredictor(model.network)
    else:
        import warnings

        from sam2.sam2_image_predictor import SAM2ImagePredictor

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it uses torch.jit.script
            predictor = SAM2ImagePredictor(model.network)
        predictor._bb_feat_sizes = [(64, 64), (32, 32), (16, 16)]  # it knows 1024 only
    predictor.set_image(image)
    return predictor


def theirs(predictor, prompt, multimask, mask_input=None):
    return predictor.predict(
        point_coords=np.array([(p.x, p.y) for p in prompt.points]) if prompt.points else None,
        point_labels=np.array([p.label for p in prompt.points]) if prompt.points else None,
        box=np.array(prompt.box.xyxy) if prompt.box else None,
        mask_input=mask_input, multimask_output=multimask, return_logits=True,
    )  # fmt: skip


def structures(shape):
    mask = disc(shape)
    return {
        "one point": Prompt(points=CLICKS[:1]),
        "points": Prompt(points=CLICKS),
        "box": Prompt(box=BOX),
        "points + box": Prompt(points=CLICKS, box=BOX),
        "mask": Prompt(mask=mask),
        "mask + box": Prompt(mask=mask, box=mask_to_box(mask)),
        "all": Prompt(points=CLICKS[:2], box=BOX, mask=mask),
    }


@pytest.mark.parametrize("multimask", [False, True], ids=["single", "multi"])
@pytest.mark.parametrize("shape", SHAPES, ids=["wide", "tall"])
def test_logits_equal_the_predictors_for_every_structure_of_prompt(model, shape, multimask):
    image = image_of(shape)
    encoded, predictor = model.encode(image), predictor_of(model, image)
    prompts = structures(shape)
    decoded = model.decode(encoded, list(prompts.values()), multimask=multimask)
    assert decoded.logits.shape == (len(prompts), 3 if multimask else 1, *shape) and decoded.logits.dtype == np.float32
    for i, (name, prompt) in enumerate(prompts.items()):
        mask_input = None
        if prompt.mask is not None:
            mask_input = mask_to_logits(prompt.mask, model.size, model.low[0], pad=model.pad)[None]
        logits, iou, low = theirs(predictor, prompt, multimask, mask_input)
        np.testing.assert_allclose(decoded.logits[i], logits, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(decoded.iou[i], iou, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(decoded.low[i], low, atol=1e-4, err_msg=name)
    spread = np.abs(decoded.logits[:, None] - decoded.logits[None]).max(axis=(2, 3, 4))
    assert spread[~np.eye(len(prompts), dtype=bool)].min() > 1e-2, "the prompts must matter, or the comparison says nothing"


def test_raw_logits_of_an_earlier_answer_can_be_the_mask_prompt(model):
    image = image_of(SHAPES[0])
    encoded, predictor = model.encode(image), predictor_of(model, image)
    first = model.decode(encoded, [Prompt(box=BOX)])
    again = model.decode(encoded, [Prompt(box=BOX)], mask_logits=first.low[:, 0])
    logits, iou, _ = theirs(predictor, Prompt(box=BOX), False, first.low[0])
    np.testing.assert_allclose(again.logits[0], logits, atol=1e-4)
    np.testing.assert_allclose(again.iou[0], iou, atol=1e-4)
    assert np.abs(again.logits - first.logits).max() > 1e-2


def test_many_boxes_in_one_call_equal_predict_torch(small_sam):
    image = image_of(SHAPES[0])
    predictor = predictor_of(small_sam, image)
    boxes = np.array([(10, 12, 50, 71), (3, 4, 90, 80), (100, 20, 159, 90)], float)
    given = torch.as_tensor(predictor.transform.apply_boxes(boxes, SHAPES[0]), dtype=torch.float)
    logits, iou, _ = predictor.predict_torch(None, None, boxes=given, multimask_output=False, return_logits=True)
    decoded = small_sam.decode(small_sam.encode(image), [Prompt(box=Box(*b)) for b in boxes])
    np.testing.assert_allclose(decoded.logits, logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(decoded.iou, iou.numpy(), atol=1e-4)


def heads(model):
    network = model.network
    if isinstance(model, sam.SamModel):
        return network.prompt_encoder, network.mask_decoder
    return network.sam_prompt_encoder, network.sam_mask_decoder


def calls_of(module):
    """Keyword arguments of every call of `module`, and the handle that ends the watching."""
    calls = []
    return calls, module.register_forward_pre_hook(lambda _, __, given: calls.append(given), with_kwargs=True)


def test_prompts_of_one_structure_are_one_call_and_equal_one_by_one(model):
    encoded = model.encode(image_of(SHAPES[0]))
    prompts = [Prompt(box=BOX), Prompt(points=CLICKS[:1]), Prompt(box=Box(5, 5, 20, 30)), Prompt(points=CLICKS[1:2])]
    calls, handle = calls_of(heads(model)[1])
    together = model.decode(encoded, prompts)
    handle.remove()
    assert [len(c["sparse_prompt_embeddings"]) for c in calls] == [2, 2]
    for i, prompt in enumerate(prompts):
        alone = model.decode(encoded, [prompt])
        np.testing.assert_allclose(together.logits[i], alone.logits[0], atol=1e-4)
        np.testing.assert_allclose(together.iou[i], alone.iou[0], atol=1e-4)


def test_a_mask_of_zeros_and_ones_is_not_what_is_sent(model):
    encoded = model.encode(image_of(SHAPES[0]))
    mask = disc(SHAPES[0])
    calls, handle = calls_of(heads(model)[0])
    right = model.decode(encoded, [Prompt(mask=mask)])
    model.decode(encoded, [Prompt(mask=mask)], strength=7)
    handle.remove()
    assert calls[0]["masks"].shape == (1, 1, *model.low)
    assert calls[0]["masks"].unique().tolist() == [-18, 18] and calls[1]["masks"].unique().tolist() == [-7, 7]
    naive = (mask_to_logits(mask, model.size, model.low[0], pad=model.pad) > 0).astype(np.float32)
    wrong = model.decode(encoded, [Prompt(mask=mask)], mask_logits=[naive])
    assert np.abs(right.logits - wrong.logits).max() > 1e-2, "and it would have made a difference"


def test_an_image_model_keeps_no_state_of_an_image(model):
    """Encoding another image in between changes nothing: what was encoded is the caller's value."""
    first = model.encode(image_of(SHAPES[0]))
    before = model.decode(first, [Prompt(box=BOX)])
    model.encode(image_of(SHAPES[1]))
    np.testing.assert_array_equal(model.decode(first, [Prompt(box=BOX)]).logits, before.logits)


# -- building and loading ------------------------------------------------------------------------------------------------


def test_a_sam_2_network_is_what_build_sam2_builds():
    from sam2.build_sam import build_sam2

    card = weights.card("sam2.1_hiera_tiny")
    ours = sam.build(card.name).network
    their = build_sam2(card.config, device="cpu")
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in their.state_dict().items()}
    for name in ("dynamic_multimask_via_stability", "dynamic_multimask_stability_delta", "dynamic_multimask_stability_thresh"):
        assert getattr(ours.sam_mask_decoder, name) == getattr(their.sam_mask_decoder, name)
    assert not ours.training and type(ours) is type(their)


@pytest.fixture
def checkpoint(small_sam2, tmp_path):
    torch.save({"model": small_sam2.network.state_dict()}, tmp_path / "mine.pt")
    yield tmp_path / "mine.pt"
    sam._loaded.cache_clear()


def test_a_checkpoint_file_loads_by_its_architecture_and_only_by_it(checkpoint, config256, small_sam2):
    with pytest.raises(InputError, match="say what it holds"):
        load(checkpoint, "cpu")
    with pytest.raises(InputError, match="weights of sam2_hiera_tiny"):
        load(checkpoint, "cpu", "sam2_hiera_tiny")
    loaded = load(checkpoint, "cpu", str(config256))
    image, prompts = image_of(SHAPES[0])[..., ::-1], [Prompt(box=BOX)]
    np.testing.assert_array_equal(
        loaded.decode(loaded.encode(image), prompts).logits, small_sam2.decode(small_sam2.encode(image), prompts).logits
    )


def test_a_named_checkpoint_is_verified_and_loaded_once(checkpoint, config256, monkeypatch):
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    card = weights.Card(
        "mine", "https://nowhere/mine.pt", "MIT", "sam2", bytes=checkpoint.stat().st_size, config=str(config256), sha256=sha256
    )
    monkeypatch.setattr(weights, "cards", lambda: {"mine": card})
    monkeypatch.setenv("VOSNB_CHECKPOINTS", str(checkpoint.parent))
    model = load("mine", "cpu")
    assert model.name == "mine" and model.size == 256
    checkpoint.write_bytes(b"tampered")
    assert load("mine", "cpu") is model
    sam._loaded.cache_clear()
    with pytest.raises(InputError, match=r"vosnb fetch mine"):
        load("mine", "cpu")


def test_a_device_that_is_not_there_is_said_to_be_absent():
    assert pick("cpu") == torch.device("cpu") and precision(pick("cpu")) is torch.float32
    with pytest.raises(InputError, match="choose one of these"):
        pick("gpu")
    with pytest.raises(InputError, match="present"):
        pick("cuda:99")


def test_inference_holds_in_the_thread_that_enters_it_and_ends_there():
    with inference(torch.device("cpu"), torch.bfloat16):
        assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16
    assert not torch.is_inference_mode_enabled() and not torch.is_autocast_enabled("cpu")
