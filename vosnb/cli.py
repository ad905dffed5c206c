"""The command line: a thin layer that reads text, calls a verb and says where the result is. Verbs are imported when called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from .errors import InputError, RunFailed
from .files import check_new, check_result
from .vos_command import pair, processes, slurm_settings, vos

if TYPE_CHECKING:
    from .clip import Clip
    from .prompts import Prompts


class _Stoppable(TyperGroup):
    """Ctrl-C in any command is one line on stderr and the exit code that shells know."""

    def invoke(self, ctx: typer.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            print(f"\nstopped, {str(stopped) or 'nothing half-written is left'}", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Stoppable, help="Video object segmentation, notebook first.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False, rich_markup_mode=None,  # importing rich takes as long as all the rest
)  # fmt: skip

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Objects = Annotated[
    list[int] | None, typer.Option("--aux", help="Object that competes for pixels, then becomes background; repeatable.")
]


@app.command()
def clip(
    source: Annotated[str, typer.Argument(help="A URL, a video file, or 'turbulence' (embedded).")],
    start: Annotated[str | None, typer.Option(help="Where to begin: 13:21, 1:02:03.5 or seconds.")] = None,
    end: Annotated[str | None, typer.Option(help="Where to end.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the result.")] = Path("data"),
    name: Annotated[str | None, typer.Option(help="Name before the times; by default the source's.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Cut a clip out of a video: data/NAME_1321_1402.mp4."""
    from .extract import extract

    print(extract(source, start, end, out, name=name, overwrite=overwrite))


@app.command()
def segment(
    clip: Annotated[str, typer.Argument(help="A video file, a folder of images, or one image.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The label map to write, an indexed PNG.")],
    frame: Annotated[int, typer.Option(help="Which frame, from 0.")] = 0,
    points: Annotated[list[str] | None, typer.Option(help="OBJECT:x,y[,x,y…] on the object; repeatable.")] = None,
    background: Annotated[list[str] | None, typer.Option(help="OBJECT:x,y[,x,y…] not on the object; repeatable.")] = None,
    box: Annotated[list[str] | None, typer.Option(help="OBJECT:x0,y0,x1,y1; repeatable.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A prompts JSON file; the options above add to it.")] = None,
    model: Annotated[
        str | None, typer.Option(help="vosnb-mini-sam2 (default until a SAM 2.1 is fetched), grabcut, sam2.1_hiera_tiny, …")
    ] = None,
    fill_holes: Annotated[int | None, typer.Option(help="Fill holes of up to this many pixels, a whole number.")] = None,
    aux: Objects = None,
    overlay: Annotated[Path | None, typer.Option(help="A picture to write, the masks over the frame.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Segment one frame from points, boxes or masks."""
    from .masks import write_labels
    from .paint import overlay as draw
    from .prompts import Prompts
    from .segment import segment as verb

    check_result(out, (".png",), clip, prompts)
    check_result(overlay, (".png", ".jpg", ".jpeg"), clip, prompts)
    check_new(out, overwrite)
    check_new(overlay, overwrite)
    source = _clip(clip)
    if not 0 <= frame < len(source):
        raise InputError(f"a frame from 0 to {len(source) - 1}", frame, "frames count from 0")
    asked = Prompts.load(prompts) if prompts else Prompts()
    asked = _with_options(asked, frame, points, background, box)
    asked.check(len(source), source.height, source.width)
    if frame not in asked:
        raise InputError(f"a prompt on frame {frame}", f"prompts on frames {list(asked)}", "choose one of these with --frame")
    image = source[frame]
    found = verb(image, asked[frame], model=model, fill_holes=fill_holes, aux=tuple(aux or ()))
    write_labels(out, found.labels)
    if overlay:
        _write_image(overlay, draw(image, found.labels))
    for obj, mask in found.masks.items():
        print(
            f"object {obj}: {int(mask.sum())} px" + ("" if mask.any() else ", EMPTY: the model found nothing for this prompt")
        )
    print(out)


@app.command()
def propagate(
    clip: Annotated[str, typer.Argument(help="A video file or a folder of images.")],
    first: Annotated[Path, typer.Argument(help="The first label map (indexed PNG), or a prompts JSON file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the indexed PNGs.")],
    by: Annotated[str, typer.Option(help="Strategy: flow, sam, …")] = "flow",
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting of the strategy, name=value; repeatable.")] = None,
    frame: Annotated[int, typer.Option(help="The frame that FIRST belongs to.")] = 0,
    direction: Annotated[str, typer.Option(help="forward, backward or both.")] = "forward",
    aux: Objects = None,
    per_object: Annotated[bool, typer.Option("--per-object", help="Write OBJECT/FRAME.png, as SA-V does.")] = False,
    video: Annotated[Path | None, typer.Option(help="An overlay video to write.")] = None,
    snap: Annotated[bool, typer.Option("--snap", help="Give stray ids of an anti-aliased FIRST to their neighbours.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Carry masks or prompts through a clip."""
    from .masks import read_labels
    from .prompts import Prompts
    from .propagate import propagate as verb

    check_result(out, (), clip, first)
    check_result(video, (".mp4", ".mov", ".mkv"), clip, first)
    check_new(video, overwrite)
    source = _clip(clip)
    if first.suffix.lower() == ".json":
        prompts = Prompts.load(first)
    else:
        labels = read_labels(first, size=(source.height, source.width), phantom="snap" if snap else "refuse")
        prompts = Prompts({frame: labels})
    settings = dict(pair(text) for text in set_ or ())
    masks = verb(
        source,
        prompts,
        by,
        out=out,
        direction=direction,
        aux=tuple(aux or ()),
        per_object=per_object,
        overwrite=overwrite,
        **settings,
    )
    print(out)
    if video:
        masks.video(source, video, overwrite=overwrite)
        print(video)


@app.command()
def refine(
    clip: Annotated[str, typer.Argument(help="A video file or a folder of images.")],
    masks: Annotated[Path, typer.Argument(help="A folder of PNGs, one per frame.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the refined PNGs.")],
    prompt: Annotated[str, typer.Option(help="What the model is given of each mask: mask+box, box or mask.")] = "mask+box",
    model: Annotated[
        str | None, typer.Option(help="vosnb-mini-sam2 (default until a SAM 2.1 is fetched), grabcut, sam2.1_hiera_tiny, …")
    ] = None,
    strength: Annotated[float, typer.Option(help="The ± of a mask's logits.")] = 18.0,
    trust: Annotated[
        float, typer.Option(help="The model overrules a mask where it is surer than this, in logits; 0: always.")
    ] = 2.0,
    overwrite: Overwrite = False,
) -> None:
    """Refine masks frame by frame with an image model."""
    from .refine import changes
    from .refine import refine as verb

    check_result(out, (), clip, masks)
    refined = verb(_clip(clip), masks, prompt, model, strength=strength, trust=trust, out=out, overwrite=overwrite)
    for obj, kept in changes(refined).items():
        least = min(kept, key=kept.__getitem__)
        mean = sum(kept.values()) / len(kept)
        print(f"object {obj}: IoU with what it was {mean:.3f}, at least {kept[least]:.3f} (frame {refined.names[least]})")
    print(out)


@app.command()
def compare(
    clip: Annotated[str, typer.Argument(help="A video file or a folder of images.")],
    first: Annotated[Path, typer.Argument(help="The first label map (indexed PNG), or a prompts JSON file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the page, the tables and the masks; taken up again.")],
    by: Annotated[str, typer.Option(help="Strategies: flow,sam,sam2,sam2long,xmem,xmem+refine, …")] = "flow,sam",
    truth: Annotated[Path | None, typer.Option(help="A folder of PNGs; without one, only agreement is known.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="STRATEGY.name=value; repeatable.")] = None,
    frame: Annotated[int, typer.Option(help="The frame that FIRST belongs to.")] = 0,
    frames: Annotated[int, typer.Option(help="How many frames of the clip; 0: all.")] = 0,
    direction: Annotated[str, typer.Option(help="forward, backward or both.")] = "forward",
    aux: Objects = None,
) -> None:
    """Follow the same prompts by several strategies: how good, how quick, and where they disagree."""
    from .compare_command import compare as run_compare

    run_compare(clip, first, out, by, truth, set_ or [], frame, frames, direction, aux or [])


@app.command()
def measure(
    masks: Annotated[list[Path], typer.Argument(help="A folder of PNGs; several are strategies, whose spread is given.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the tables and the plot.")],
    pixel: Annotated[float, typer.Option(help="The length of a pixel's side.")] = 1.0,
    unit: Annotated[str, typer.Option(help="The unit of that length.")] = "px",
    fps: Annotated[float | None, typer.Option(help="Frames per second; without it, frames are the clock.")] = None,
    gap: Annotated[float, typer.Option(help="Objects so many pixels apart share an interface.")] = 2.0,
    across: Annotated[str, typer.Option(help="The axis across the mixing layer, y or x.")] = "y",
    overwrite: Overwrite = False,
) -> None:
    """Areas, outlines, interfaces and the mixing layer, in units of length and time, as tables and a plot."""
    from .compare_command import measure as run_measure

    run_measure(masks, out, pixel, unit, fps, gap, across, overwrite)


@app.command()
def export(
    masks: Annotated[Path, typer.Argument(help="A folder of PNGs, or a COCO or YouTube-VIS JSON file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for all; or, with one format of one file, that file.")],
    as_: Annotated[
        list[str],
        typer.Option(
            "--as", help="png, png-per-object, coco, youtube-vis, video, webm, cutout or csv; repeatable, or with commas."
        ),
    ],
    clip: Annotated[
        str | None, typer.Option(help="A video file or a folder of images: for video, webm, cutout and times.")
    ] = None,
    only: Annotated[list[int] | None, typer.Option("--object", help="Only this one; repeatable.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A prompts JSON file: names and colours of the objects.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Masks as other programs want them: PNGs, COCO and YouTube-VIS JSON, films, cut-outs, tables."""
    from .export import FORMATS
    from .export import export as verb
    from .prompts import Prompts

    formats = [name.strip() for text in as_ for name in text.split(",") if name.strip()]
    for name in formats:
        target = out if out.suffix else out / FORMATS[name].path if name in FORMATS else None
        check_result(target, (), masks, clip, prompts)
    if out.resolve().is_relative_to(masks.resolve()):
        raise InputError("a place of its own for the result", f"{out}, which is or lies in {masks}", "choose another name")
    objects = Prompts.load(prompts).objects if prompts else None
    source = _clip(clip) if clip else None
    for path in verb(masks, source, out, formats, ids=only or None, objects=objects, overwrite=overwrite).values():
        print(path)


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []})
def video(context: typer.Context) -> None:
    """Track through one video with the flags of SAM 2 and SAM2Long: --video_path --points x1 y1 … --num_pathway 3 …"""
    from .video_command import run as run_video

    for path in run_video(context.args):
        print(path)


app.command()(vos)


@app.command()
def evaluate(
    results: Annotated[
        list[Path], typer.Argument(help="Folders of PNGs, or of a folder of PNGs per sequence; several compare.")
    ],
    truth: Annotated[Path, typer.Argument(help="The same of the ground truth.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A report.json to write, or a folder for all tables.")] = None,
    protocol: Annotated[str | None, typer.Option(help="davis2016, davis2017, youtube-vos, lvos, mose or sa-v.")] = None,
    sequences: Annotated[Path | None, typer.Option("--list", help="A file that names the sequences, one a line.")] = None,
    unseen: Annotated[Path | None, typer.Option(help="A file that names unseen sequences or categories, one a line.")] = None,
    images: Annotated[Path | None, typer.Option(help="The folder of the frames, to draw the worst masks on.")] = None,
    missing: Annotated[str, typer.Option(help="Masks that are not there: refuse, empty or skip (whole sequences).")] = "refuse",
    only: Annotated[
        list[int] | None, typer.Option("--object", help="Score only this one; repeatable, without a protocol.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
    overwrite: Overwrite = False,
) -> None:
    """Compare masks with ground truth: J and F per object; without a protocol of one sequence, but its first frame."""
    from .datasets import names_in
    from .evaluate import Comparison
    from .evaluate import evaluate as verb

    check_result(out, (".json",) if out and out.suffix else (), *results, truth)
    chosen = {name: names_in(path) for name, path in (("sequences", sequences), ("unseen", unseen)) if path}
    reports = {
        _name(masks, results): verb(
            masks,
            truth,
            protocol=protocol,
            ids=only,
            missing=missing,
            jobs=jobs,
            **({} if protocol else {"compared": {"masks": str(masks), "truth": str(truth)}}),
            **chosen,
        )
        for masks in results
    }
    for name, report in reports.items():
        if len(reports) > 1:
            print(name)
        for key, j in report.J.items():
            print(f"object {key}: J {j:.4f}" + (f" F {report.F[key]:.4f}" if protocol else ""))
        print(f"mean J {report.mean:.4f}")
        if protocol:
            print(*(f"{name} {value:.4f}" for name, value in report.summary.items()), sep="\n")
        for note in report.notes:
            print(f"note: {note}", file=sys.stderr)
    done = Comparison(reports) if len(reports) > 1 else next(iter(reports.values()))
    if isinstance(done, Comparison):
        for name, gain in done.differences.items():
            print(
                f"{name}: J&F {gain.mean:+.4f} ({gain.low:+.4f} … {gain.high:+.4f}), {gain.better} objects better, {gain.worse} worse"
            )
    if out:
        print(done.save(out) if out.suffix else done.save(out, overwrite=overwrite, images=images))


@app.command()
def submit(
    masks: Annotated[Path, typer.Argument(help="Results, a folder of PNGs per video; or a zip file, which is only checked.")],
    data: Annotated[Path, typer.Option("--data", help="The root of the data set.")],
    kind: Annotated[str, typer.Option("--kind", help="davis2017, youtube-vos, lvos, mose or sa-v.")],
    split: Annotated[str, typer.Option("--split")] = "test",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The zip file to write.")] = None,
) -> None:
    """Pack masks into the zip file that a data set's server wants, and check it."""
    from . import submit as module
    from .datasets import dataset

    videos = dataset(data, kind, split)
    if masks.suffix.lower() == ".zip":
        module.check(masks, videos)
        print(f"{masks}: {len(videos)} videos, as they should be")
    elif out is None:
        raise InputError("--out FILE.zip", "none", "say where the zip file goes")
    else:
        print(module.submit(masks, videos, out))


@app.command()
def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Checkpoints, e.g. sam2.1_hiera_tiny; none: list them.")] = None,
) -> None:
    """Download checkpoints and verify them."""
    from .models import weights

    if not names:
        for name, card in weights.cards().items():
            print(f"{name:24} {card.size:>12}  {card.licence}")
    for name in names or ():
        print(weights.fetch(name))


@app.command()
def run(
    notebook: Annotated[Path, typer.Argument(help="A notebook with a cell tagged 'parameters'.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the executed notebook and its results.")],
    parameter: Annotated[list[str] | None, typer.Option("-p", help="name=value, typed (5, 0.1, True).")] = None,
    raw: Annotated[list[str] | None, typer.Option("-r", help="name=value, always text (001).")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Run a notebook headless with parameters."""
    from .run import run_notebook

    print(
        run_notebook(
            notebook, out, dict(pair(p) for p in parameter or ()), dict(pair(p) for p in raw or ()), overwrite=overwrite
        )
    )


@app.command()
def sweep(
    notebook: Annotated[Path, typer.Argument(help="A notebook with a cell tagged 'parameters'.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for a folder per combination, and table.csv.")],
    grid: Annotated[list[str], typer.Option("-g", "--grid", help="name=value,value,…: every combination is run; repeatable.")],
    parameter: Annotated[list[str] | None, typer.Option("-p", help="name=value for all, typed (5, 0.1, True).")] = None,
    jobs: Annotated[str, typer.Option("--jobs", help="Processes, or auto: one per GPU, or per four cores.")] = "1",
    slurm: Annotated[list[str] | None, typer.Option("--slurm", help="As in `vosnb vos`.")] = None,
    resume: Annotated[bool, typer.Option("--resume/--overwrite", help="Do what is missing, or all anew.")] = True,
) -> None:
    """Run a notebook over a grid of parameters; one table of what came out."""
    from .batch import run as run_batch
    from .sweep import Sweep

    varied = {name: tuple(values.split(",")) for name, values in map(pair, grid)}
    job = Sweep(notebook.resolve(), varied, dict(map(pair, parameter or ())))
    done = run_batch(job, out, jobs=processes(jobs), slurm=slurm_settings(slurm), overwrite=not resume)
    print(job.table(done.done).to_string(index=False))
    print(job.save_table(done.done, out / "table.csv"))
    raise typer.Exit(done.code)


@app.command("app")
def web(
    host: Annotated[
        str, typer.Option(help="127.0.0.1 is this machine alone; 0.0.0.0 lets everybody in who reaches it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port of the address.")] = 7860,
    model: Annotated[
        str | None, typer.Option(help="vosnb-mini-sam2 (default until a SAM 2.1 is fetched), sam2.1_hiera_tiny, …")
    ] = None,
    megabytes: Annotated[int, typer.Option(help="The largest upload.")] = 500,
    frames: Annotated[int, typer.Option(help="The longest film.")] = 3000,
    side: Annotated[int, typer.Option(help="The longest side of a film, in pixels.")] = 1920,
    visitors: Annotated[int, typer.Option(help="How many at a time.")] = 8,
) -> None:
    """The web page: upload a video, click, follow, download. Ctrl-C ends it and removes its files."""
    from .app import serve
    from .rooms import Limits

    serve(host, port, Limits(megabytes, frames, side, visitors), model)


@app.command()
def demo(out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("runs/demo")) -> None:
    """Make the embedded clip, run the notebooks on it, evaluate, and say where to look."""
    from .demo import demo as run_demo

    run_demo(out)


@app.command()
def doctor() -> None:
    """Say what is installed, which device there is, and which checkpoints."""
    from . import doctor as module

    print(module.report(module.doctor()))


def main() -> None:
    """The entry point: an `InputError`, or what the system refuses, becomes one line on stderr and exit code 2, a notebook that
    failed exit code 1."""
    try:
        app()
    except OSError as error:
        told = InputError("the system to allow it", error, "check the path and its permissions, or choose another")
        print(f"error: {told}", file=sys.stderr)
        sys.exit(2)
    except (InputError, RunFailed) as error:
        print(f"error: {error}".replace("overwrite=True", "--overwrite"), file=sys.stderr)  # what it is called here
        sys.exit(1 if isinstance(error, RunFailed) else 2)


def _clip(source: str) -> Clip:
    from .clip import Clip

    return Clip(source)


def _name(folder: Path, among: list[Path]) -> str:
    """What to call one of several results: its last part, but those that all have (masks), or all of it where names are the same."""
    parts = [f.parts for f in among]
    shared = next((n for n, last in enumerate(zip(*map(reversed, parts), strict=False)) if len({*last}) > 1), 0)
    names = [p[-1 - shared] for p in parts if len(p) > shared]
    name = folder.parts[-1 - shared] if len(folder.parts) > shared else ""
    return name if names.count(name) == 1 else "_".join(p for p in folder.parts if p not in "/..")


def _with_options(asked: Prompts, frame: int, points: Any, background: Any, boxes: Any) -> Prompts:
    from .prompts import Box, Point, Prompt

    for texts, kind in ((points, "points"), (background, "background"), (boxes, "box")):
        for text in texts or ():
            obj, numbers = _coordinates(text, kind)
            old = asked.get(frame, {}).get(obj)
            box, clicks, mask = (old.box, old.points, old.mask) if old else (None, (), None)
            if kind == "box":
                if box is not None:
                    raise InputError("one box per object", f"a second one for object {obj}: {text!r}", "drop one")
                box = Box(*numbers)
            else:
                clicks = (
                    *clicks,
                    *(Point(x, y, int(kind == "points")) for x, y in zip(numbers[::2], numbers[1::2], strict=True)),
                )
            asked = asked.with_prompt(frame, obj, Prompt(clicks, box, mask))
    return asked


def _coordinates(text: str, kind: str) -> tuple[int, list[float]]:
    """'2:10,40,200,310' → (2, [10, 40, 200, 310])."""
    form = "OBJECT:x0,y0,x1,y1" if kind == "box" else "OBJECT:x,y[,x,y…]"
    obj, _, rest = text.partition(":")
    try:
        numbers = [float(n) for n in rest.split(",")]
        number = int(obj)
    except ValueError:
        numbers, number = [], 0
    if not numbers or (len(numbers) != 4 if kind == "box" else len(numbers) % 2):
        raise InputError(
            f"--{kind} {form}", repr(text), f"write for example --{kind} {'2:10,40,200,310' if kind == 'box' else '1:420,240'}"
        )
    return number, numbers


def _write_image(path: Path, image: Any) -> None:
    from PIL import Image

    from .files import replacing

    with replacing(path) as temporary:
        Image.fromarray(image).save(temporary)


if __name__ == "__main__":
    main()
