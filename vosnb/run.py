"""Runs a notebook from the command line: parameters in; the executed notebook and an HTML copy out."""

from __future__ import annotations

import ast
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError, RunFailed
from .files import check_new, replacing
from .progress import progress

if TYPE_CHECKING:
    from jupyter_client.manager import AsyncKernelManager
    from nbformat import NotebookNode

__all__ = ["RunFailed", "parameters_of", "run_notebook", "typed_parameters"]


def run_notebook(
    notebook: str | Path,
    out: str | Path,
    parameters: Mapping[str, Any] | None = None,
    raw: Mapping[str, str] | None = None,
    overwrite: bool = False,
    kernel: str | None = None,
) -> Path:
    """Executes `notebook` with `parameters`; writes `out/NAME.ipynb` and `out/NAME.html`, and returns the former's path.

    Text in `parameters` is read as papermill reads `-p`: 5, 0.1, True, None, else text; it stays text where the notebook
    declares the parameter as `str`. What is in `raw` always stays text. A parameter `out` that is not given becomes this
    folder, absolute. Relative paths mean what they mean to the caller: the kernel works in the current folder. It is the very
    Python that runs this, unless `kernel` names another one, and VOSNB_HEADLESS is set in it.

    `InputError` before anything runs: no such notebook, an unknown parameter, a result that exists without `overwrite`.
    `RunFailed` where a cell raises or the kernel dies; the executed notebook and its copy are written nevertheless, and the
    next run may replace them.
    """
    notebook, out = Path(notebook), Path(out)
    node = _read(notebook)
    known = parameters_of(node)
    values = typed_parameters(known, parameters or {}, raw or {})
    if "out" in known:
        values.setdefault("out", str(out.resolve()))
    target, page = out / notebook.name, out / f"{notebook.stem}.html"
    if target.resolve() == notebook.resolve():
        raise InputError(f"a folder other than the notebook's own, {notebook.parent}", out, "choose another folder")
    for path in (target, page):
        check_new(path, overwrite or _failed(target))
    manager = _kernel_manager(kernel)

    with replacing(target) as temporary:
        cells = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in node.cells) + bool(values)
        failure = _execute(notebook, temporary, values, manager, progress(range(cells), cells, notebook.stem, "cell"))
        executed = _read(temporary)
        executed.metadata.papermill.update(input_path=str(notebook), output_path=str(target), exception=failure is not None)
        temporary.write_text(_json(executed), encoding="utf-8")
    with replacing(page) as temporary:
        temporary.write_text(_html(executed, notebook), encoding="utf-8")
    if isinstance(failure, KeyboardInterrupt):
        raise KeyboardInterrupt(f"the notebook is kept, as far as it came, at {target}") from failure
    if failure:
        raise RunFailed(target, *_where(executed, failure)) from failure
    return target


def _failed(executed: Path) -> bool:
    """Whether there is a notebook that ran here and did not come to its end."""
    try:
        return json.loads(executed.read_text(encoding="utf-8"))["metadata"]["papermill"]["exception"] is True
    except (OSError, ValueError, LookupError, TypeError):  # not there, or no such notebook
        return False


def parameters_of(notebook: str | Path | NotebookNode) -> dict[str, tuple[str, str]]:
    """What the cell tagged `parameters` declares: {name: (type or "", default)}, as written there; {} without such a cell."""
    node = _read(notebook) if isinstance(notebook, str | Path) else notebook
    source = next((cell.source for cell in node.cells if "parameters" in cell.metadata.get("tags", [])), "")
    try:
        lines = ast.parse(source).body
    except SyntaxError as error:
        raise InputError(
            "plain assignments in the parameters cell", f"line {error.lineno}: {error.msg}", "correct the cell"
        ) from None
    found = {}
    for line in lines:
        if isinstance(line, ast.AnnAssign) and line.value:
            found[ast.unparse(line.target)] = ast.unparse(line.annotation), ast.unparse(line.value)
        elif isinstance(line, ast.Assign):
            found |= {ast.unparse(target): ("", ast.unparse(line.value)) for target in line.targets}
    return found


def _read(path: str | Path) -> NotebookNode:
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except (OSError, UnicodeDecodeError, nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "something else"
        raise InputError(f"a notebook at {path}", f"'{reason}'", "give the path of an .ipynb file") from error


def _json(node: NotebookNode) -> str:
    import nbformat

    return nbformat.writes(node) + "\n"


def typed_parameters(
    known: Mapping[str, tuple[str, str]], parameters: Mapping[str, Any], raw: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Parameters as the notebook that declares `known` wants them; what is in `raw` stays text. `InputError` for an unknown one."""
    raw = raw or {}
    declared = ", ".join(f"{name} = {default}" for name, (_, default) in known.items())
    for name in (*parameters, *raw):
        if name not in known:
            there = f"that the notebook declares ({declared})" if known else "and a cell tagged 'parameters' in the notebook"
            raise InputError(f"a parameter {there}", repr(name), "correct the name")
    return {name: _typed(value, known[name][0]) for name, value in parameters.items()} | dict(raw)


def _typed(value: Any, declared: str) -> Any:
    if not isinstance(value, str) or declared == "str":
        return value
    if declared == "bool":
        if value.capitalize() not in ("True", "False"):
            raise InputError("True or False", repr(value), "correct the parameter: any other text would count as True")
        return value.capitalize() == "True"
    if value in ("True", "False", "None"):
        return ast.literal_eval(value)
    for kind in (int, float):
        with suppress(ValueError):
            return kind(value)
    return value


def _kernel_manager(name: str | None) -> type[AsyncKernelManager]:
    """Starts this very Python, whatever kernel the machine knows as python3; or the kernel called `name`."""
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel
    from jupyter_client.manager import AsyncKernelManager

    if name is None:
        launcher = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "--log-level=CRITICAL"]
        spec = KernelSpec(argv=[*launcher, "-f", "{connection_file}"], display_name="Python 3", language="python")
    else:
        try:
            spec = KernelSpecManager().get_kernel_spec(name)
        except NoSuchKernel:
            there = ", ".join(KernelSpecManager().find_kernel_specs())
            raise InputError(f"a kernel among {there}", repr(name), "choose one of these, or none for this Python") from None
    spec.env = {**spec.env, "VOSNB_HEADLESS": "1"}

    class Headless(AsyncKernelManager):
        kernel_spec = spec

    return Headless


def _execute(
    notebook: Path, target: Path, values: dict[str, Any], manager: type[AsyncKernelManager], shown: Iterator[int]
) -> BaseException | None:
    """Writes the executed notebook to `target`; what ended it early is returned, not raised."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what matters of its messages is raised, too
    next(shown, None)
    try:
        papermill.execute_notebook(
            *(re.sub("([{}])", r"\1\1", str(path)) for path in (notebook, target)),  # papermill formats paths
            values,
            kernel_name="python3",
            kernel_manager_class=manager,
            language="python",
            progress_bar=False,
            store_widget_state=False,
            on_cell_executed=lambda **_: next(shown, None),
        )
    except (PapermillExecutionError, DeadKernelError) as error:
        return error
    except KeyboardInterrupt as error:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it would tell of the cell that nobody waits for now
        return error
    return None


def _where(executed: NotebookNode, failure: BaseException) -> tuple[int | None, str]:
    """(the code cell that ran last, counted from 1 and without the injected parameters; the exception's line)."""
    codes = [cell for cell in executed.cells if cell.cell_type == "code"]
    codes = [cell for cell in codes if "injected-parameters" not in cell.metadata.get("tags", [])]
    begun = [cell for cell in codes if cell.metadata.papermill.get("start_time")]
    errors = [f"{o.ename}: {o.evalue}" for cell in begun[-1:] for o in cell.outputs if o.output_type == "error"]
    return len(begun) or None, errors[0] if errors else str(failure)


def _html(executed: NotebookNode, notebook: Path) -> str:
    """One file that needs nothing else: pictures inside, no scripts from the web (so formulas stay as typed)."""
    from nbconvert import HTMLExporter

    nowhere = dict.fromkeys(("require_js_url", "mathjax_url", "jquery_url", "mermaid_js_url", "mermaid_layout_elk_js_url"), "")
    exporter = HTMLExporter(template_name="lab", embed_images=True, **nowhere)
    resources = {"metadata": {"name": notebook.stem, "path": str(notebook.parent)}}
    return exporter.from_notebook_node(executed, resources=resources)[0]
