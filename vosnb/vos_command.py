"""`vosnb vos`: data sets, with the flags that users of SAM 2 and SAM2Long know, and a few more."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import InputError

__all__ = ["pair", "processes", "slurm_settings", "vos"]

Flag = typer.Option


def vos(
    output_mask_dir: Annotated[Path, Flag("--output_mask_dir", "-o", help="Results: a folder of PNGs per video.")],
    base_video_dir: Annotated[Path | None, Flag("--base_video_dir", help="Frames: a folder per video.")] = None,
    input_mask_dir: Annotated[Path | None, Flag("--input_mask_dir", help="Annotations: a folder per video.")] = None,
    data: Annotated[Path | None, Flag("--data", help="Instead of these two: the root of a data set.")] = None,
    kind: Annotated[
        str, Flag("--kind", help="Of --data: davis2016, davis2017, youtube-vos, lvos, mose, sa-v or folder (like DAVIS).")
    ] = "folder",
    split: Annotated[str, Flag("--split", help="Of --data: val, train, test, …")] = "val",
    video_list_file: Annotated[
        Path | None, Flag("--video_list_file", help="Names of videos, one a line; without it, all.")
    ] = None,
    by: Annotated[str, Flag("--by", help="Strategy: sam2long, sam2, xmem, flow, …")] = "sam2long",
    set_: Annotated[list[str] | None, Flag("--set", help="A setting of the strategy, name=value; repeatable.")] = None,
    sam2_cfg: Annotated[str | None, Flag("--sam2_cfg", help="A configuration: configs/sam2.1/sam2.1_hiera_l.yaml.")] = None,
    sam2_checkpoint: Annotated[
        str | None, Flag("--sam2_checkpoint", help="A checkpoint file, or a name `vosnb fetch` lists.")
    ] = None,
    num_pathway: Annotated[int | None, Flag("--num_pathway", help="Pathways per object [3].")] = None,
    iou_thre: Annotated[float | None, Flag("--iou_thre", help="Remembered above this predicted IoU [0.1].")] = None,
    uncertainty: Annotated[
        float | None, Flag("--uncertainty", help="Branch where no |object score| is above this [2].")
    ] = None,
    score_thresh: Annotated[float | None, Flag("--score_thresh", help="Mask logits above it are the object [0].")] = None,
    apply_postprocessing: Annotated[bool, Flag("--apply_postprocessing", help="SAM 2's own, such as filling holes.")] = False,
    device: Annotated[str | None, Flag("--device", help="auto, cpu, cuda, mps.")] = None,
    per_obj_png_file: Annotated[
        bool, Flag("--per_obj_png_file", help="A PNG per object in and out, as SA-V has them.")
    ] = False,
    track_object_appearing_later_in_video: Annotated[
        bool, Flag("--track_object_appearing_later_in_video", help="Such objects are expected. (They are tracked in any case.)")
    ] = False,
    use_all_masks: Annotated[
        bool, Flag("--use_all_masks", help="Every annotation is a prompt, not only each object's first.")
    ] = False,
    num_nodes: Annotated[int, Flag("--num_nodes")] = 1,
    node_id: Annotated[int, Flag("--node_id")] = 0,
    num_chunks: Annotated[int, Flag("--num_chunks", help="Of each node. This call does one chunk of the sorted videos.")] = 1,
    chunk_id: Annotated[int, Flag("--chunk_id")] = 0,
    jobs: Annotated[str, Flag("--jobs", help="Processes, or auto: one per GPU, or per four cores.")] = "1",
    slurm: Annotated[
        list[str] | None, Flag("--slurm", help="partition=…,time=…,gpus_per_node=1,workers=8: run there; repeatable.")
    ] = None,
    resume: Annotated[bool, Flag("--resume/--overwrite", help="Do what is missing, or all anew.")] = True,
    report: Annotated[
        Path | None, Flag("--report", help="A folder for J&F, by the protocol of --kind, when all is done.")
    ] = None,
    protocol: Annotated[str | None, Flag("--protocol", help="Of --report, instead of that of --kind.")] = None,
) -> None:
    """Masks for the videos of a data set. Interrupt it, repeat it: only what is missing is done."""
    from .batch import run
    from .datasets import dataset, folders, names_in
    from .evaluate import PROTOCOLS
    from .strategies import get
    from .vos import Vos

    if (data is None) == (base_video_dir is None or input_mask_dir is None):
        raise InputError(
            "--base_video_dir and --input_mask_dir, or --data", "both or neither", "say where frames and masks are"
        )
    protocol = protocol or kind
    if report and protocol not in PROTOCOLS:
        raise InputError(f"--report with --protocol {', '.join(PROTOCOLS)}", protocol, "say which to score by")
    if report and num_nodes * num_chunks > 1:
        raise InputError("--report without chunks", f"{num_nodes * num_chunks} of them", "call `vosnb evaluate` at the end")
    if sam2_cfg and sam2_checkpoint is None:
        raise InputError("--sam2_checkpoint with --sam2_cfg", "none", "name the file of that architecture's weights")
    for number, count, what in ((node_id, num_nodes, "node"), (chunk_id, num_chunks, "chunk")):
        if not 0 <= number < count:
            raise InputError(f"a {what}_id from 0 to num_{what}s - 1 = {count - 1}", number, f"correct --{what}_id")
    listed = names_in(video_list_file) if video_list_file else None
    if data is None:
        videos = folders(base_video_dir, input_mask_dir, listed, per_object=per_obj_png_file)
    else:
        videos = dataset(data, kind, split)
        videos = videos.only(listed) if listed else videos
        if per_obj_png_file and not videos[0].per_object:
            got = f"--data of kind {kind}, which has one for all"
            raise InputError("--per_obj_png_file with a PNG per object", got, "name the two folders instead, or leave it out")
    given = {
        "model": sam2_checkpoint, "config": sam2_cfg, "num_pathway": num_pathway, "iou_thre": iou_thre, "uncertainty": uncertainty,
        "score_thresh": score_thresh, "postprocess": apply_postprocessing or None, "device": device,
    }  # fmt: skip
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    settings |= dict(pair(text) for text in set_ or ())
    done = run(
        Vos(videos, get(by, **settings), every=use_all_masks, late=track_object_appearing_later_in_video),
        output_mask_dir,
        jobs=processes(jobs),
        part=(chunk_id + num_chunks * node_id, num_chunks * num_nodes),
        slurm=slurm_settings(slurm),
        overwrite=not resume,
    )
    print(f"{len(done.done)} done, {len(done.failed)} failed, {len(done.left)} left")
    print(output_mask_dir)
    if report and not done.code:
        from .evaluate import evaluate

        found = evaluate(output_mask_dir, videos[0].annotations.parent, protocol=protocol, sequences=videos.names)
        print(*(f"{name} {value:.4f}" for name, value in found.summary.items()), sep="\n")
        print(found.save(report, overwrite=True, images=videos[0].images.parent))
    if done.failed:
        print(f"the same command tries the failed ones again: {', '.join(list(done.failed)[:4])}", file=sys.stderr)
    raise typer.Exit(done.code)


def slurm_settings(texts: list[str] | None) -> dict[str, Any] | None:
    """'partition=gpu,time=60' → {"partition": "gpu", "time": 60}; None where it was not asked for."""
    if texts is None:
        return None
    pairs = (pair(part) for text in texts for part in re.split(r",(?=\w+=)", text))  # exclude=n1,n2 is one
    return {name: int(value) if value.isdecimal() else value for name, value in pairs}


def pair(text: str) -> tuple[str, str]:
    """'name=value' → (name, value)."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise InputError("name=value", repr(text), "write for example --set tolerance=1.5")
    return name.strip(), value


def processes(text: str) -> int | None:
    """'4' → 4; 'auto' → None."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise InputError("a number of processes, or auto", repr(text), "correct --jobs")
    return int(text)
