"""Many pieces of work, on a laptop or on a cluster, in one command that can be interrupted and repeated.

A `Job` says what is to be done: its items, longest first, and how one is made. `run` does what is missing: on this machine with one
process per GPU, or on SLURM through submitit. An item is made in a private folder and appears by one rename, then its marker is
written; so whatever is there is whole, and repeating the command is the recovery. Beside the results, in OUT.run, lie

    run.json         the plan, written first: settings, versions, items; another plan is refused
    done/NAME.json   facts of an item: seconds, host, …
    failed/NAME.json its traceback; the next call tries again
    manifest.json    all of that in one file, written at the end of each call
    lock, tmp/, job.pkl, slurm/

A process that dies, of a signal or a fault, is recorded against the item it had in hand, and another takes its place; so it does
after an error that is not the input's, since a GPU may answer nothing any more after one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import getpass
import json
import os
import queue
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from .errors import InputError
from .files import replacing
from .progress import progress

__all__ = ["Job", "Outcome", "chunk", "pieces", "run", "state_of"]

PACKAGES = ("vosnb", "numpy", "opencv-python-headless", "torch", "sam2", "pillow", "av")
SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
GRACE = 5.0  # seconds: a process whose parent was killed is gone by then
CORES = 4  # of a process, where there is no GPU
PER_WORKER = 4  # pieces of a SLURM array per worker, so that the scheduler can balance
WORKERS = 8
LARGEST_ARRAY = 1000  # elements: what SLURM takes unless its administrator says otherwise
# Requeues a piece whose process was killed: SLURM itself does not. The last element of an array has the id of the whole array as
# its own, hence the two parts.
TEARDOWN = [
    "rc=$?",
    'me=$SLURM_JOB_ID; [ -n "$SLURM_ARRAY_TASK_ID" ] && me=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID',
    "if [ $rc -ne 0 ] && [ ${SLURM_RESTART_COUNT:-0} -lt 5 ]; then scontrol requeue $me; fi",
    "exit $rc",
]


class Job(Protocol):
    """What is to be done. It travels to other processes by pickle."""

    def plan(self) -> dict[str, Any]:
        """For JSON: all that the results depend on. Two jobs of one plan may share a folder."""
        ...

    def items(self) -> Mapping[str, float]:
        """{name: how long it takes, in any unit}; names are those of folders."""
        ...

    def make(self, name: str, folder: Path) -> dict[str, Any]:
        """Makes the item's results in `folder`, which is not there yet; returns facts for its marker, among them perhaps "notes"."""
        ...


@dataclass(frozen=True)
class Outcome:
    """`done`: {item: facts}; `failed`: {item: the last line of its traceback}; `left`: not begun or given back.

    `signal`: the one that ended the call early, or None.
    """

    done: dict[str, dict[str, Any]]
    failed: dict[str, str] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    signal: int | None = None

    @property
    def code(self) -> int:
        """The exit code: 0 if all is done; 128 + the signal's number; else 1."""
        return 128 + self.signal if self.signal else int(bool(self.failed or self.left))


def run(
    job: Job,
    out: str | Path,
    *,
    jobs: int | None = 1,
    part: tuple[int, int] = (0, 1),
    slurm: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
) -> Outcome:
    """Makes every item of `job` that is missing as `out/NAME`.

    `jobs`: processes, each on a GPU of its own as far as there are any; None: one per GPU, or per four cores.  `part` (i, n): the i-th
    of n nearly equal parts of the sorted items, for callers that share them out themselves.  `slurm`: what submitit's SlurmExecutor
    takes (partition, time in minutes, gpus_per_node, …) and `workers`, how many run at a time.  `overwrite`: remove an earlier run first
    (not with parts, which may run at the same time).

    TERM, USR2 and INT end it in order: what was in hand is given back. `InputError`, before any work: results of another plan or of
    something else in `out`; another run on it, here or on SLURM.
    """
    out = Path(out).absolute()
    index, count = part
    if not 0 <= index < count:
        raise InputError(f"a part from 0 to {count - 1}", index, "check the numbers of nodes and chunks")
    if overwrite and count > 1:
        raise InputError("all parts to be made anew together", "overwrite of one", f"remove {out} and {state_of(out)} first")
    if jobs is not None and jobs < 1:
        raise InputError("at least one process", jobs, "leave it out for one per GPU")
    if slurm is not None and not shutil.which("sbatch"):
        raise InputError("SLURM", "no sbatch command", "run it on a login node, or leave --slurm out")
    costs, state = dict(job.items()), state_of(out)
    for name in costs:
        if Path(name).name != name or name.startswith("."):
            raise InputError("items that are called like folders", repr(name), "rename it")
    if not state.is_dir() and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} to be new, empty or that of an earlier run", "something else", "choose another name")
    plan = json.loads(json.dumps({**job.plan(), "items": sorted(costs)}, default=str))
    state.mkdir(parents=True, exist_ok=True)
    with _Lock(state, index, count) as lock:
        _prepare(job, plan, out, state, overwrite, slurm is not None)
        names = chunk(sorted(costs), index, count)
        for name in names:
            _marker(state, "failed", name).unlink(missing_ok=True)
            if not (out / name).is_dir():  # someone removed it
                _marker(state, "done", name).unlink(missing_ok=True)
        longest_first = sorted(names, key=lambda name: (-costs[name], name))
        todo = [name for name in longest_first if not _marker(state, "done", name).is_file()]
        ended: int | None = None
        if todo and slurm is None:
            with _Signals() as signals:
                with closing(_supervised(state, todo, _places(jobs), signals, lock.files)) as events:
                    _show(events, len(todo), state, show_progress)
                ended = signals.received
        elif todo:
            _show(_on_slurm(state, {name: costs[name] for name in todo}, dict(slurm)), len(todo), state, show_progress)
        return _conclude(state, names, ended)


def state_of(out: str | Path) -> Path:
    """Where the run that makes `out` keeps its books."""
    out = Path(out).absolute()
    return out.with_name(out.name + ".run")


def chunk(names: Sequence[str], index: int, count: int) -> list[str]:
    """The index-th of `count` contiguous parts, whose lengths differ by one at most, the longer ones first."""
    size, more = divmod(len(names), count)
    begin = index * size + min(index, more)
    return list(names[begin : begin + size + (index < more)])


def pieces(costs: Mapping[str, float], count: int) -> list[list[str]]:
    """The items in so many heaps of nearly equal cost, the longest first: each item to the heap that is smallest so far (LPT)."""
    heaps: list[list[str]] = [[] for _ in range(min(count, len(costs)))]
    sums = [0.0] * len(heaps)
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        smallest = sums.index(min(sums))
        heaps[smallest].append(name)
        sums[smallest] += costs[name]
    return [heaps[i] for i in sorted(range(len(heaps)), key=lambda i: -sums[i])]


# -- the books -------------------------------------------------------------------------------------------------------------


def _prepare(job: Job, plan: dict[str, Any], out: Path, state: Path, overwrite: bool, on_slurm: bool) -> None:
    """Writes run.json, or sees that it is of the same plan."""
    import cloudpickle  # so that a class defined in a notebook travels too

    file = state / "run.json"
    if (live := _live(state)) and (overwrite or not on_slurm):
        got = f"SLURM jobs {live[0]} … {live[-1]}"
        raise InputError(f"no other run on {out.name}", got, "wait (the same command with --slurm does), or scancel them")
    if overwrite and file.is_file():
        shutil.rmtree(out, ignore_errors=True)
        for path in state.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif not path.name.startswith("lock"):
                path.unlink()
    if file.is_file():
        begun = json.loads(file.read_text())
        if begun["plan"] != plan:
            raise InputError(
                f"the plan that {out} was begun with",
                f"another one ({_changes(begun['plan'], plan)})",
                "choose another folder, or say overwrite",
            )
        if changed := _changes(begun["versions"], _versions()):
            print(f"note: {out.name} was begun with other versions ({changed})", file=sys.stderr)
    else:
        if out.is_dir() and any(out.iterdir()):
            raise InputError(f"{out} to be new, empty or that of an earlier run", "something else", "choose another name")
        with replacing(file) as temporary:
            temporary.write_text(json.dumps({"plan": plan, "versions": _versions(), "begun": _now()}, indent=1))
    for folder in (out, state / "done", state / "failed", state / "tmp"):
        folder.mkdir(parents=True, exist_ok=True)
    with replacing(state / "job.pkl") as temporary:
        temporary.write_bytes(cloudpickle.dumps((job, out)))


def _conclude(state: Path, names: Sequence[str], ended: int | None) -> Outcome:
    """The outcome for these items; the manifest of all."""
    done, failed = (
        {p.stem: json.loads(p.read_text()) for p in sorted((state / kind).iterdir()) if not p.name.startswith(".")}
        for kind in ("done", "failed")
    )
    about = json.loads((state / "run.json").read_text())
    with replacing(state / "manifest.json") as temporary:
        temporary.write_text(json.dumps({**about, "written": _now(), "done": done, "failed": failed}, indent=1))
    return Outcome(
        {name: done[name] for name in names if name in done},
        {name: failed[name]["error"] for name in names if name in failed},
        tuple(name for name in names if name not in done and name not in failed),
        ended,
    )


def _marker(state: Path, kind: str, name: str) -> Path:
    return state / kind / f"{name}.json"


def _write_marker(state: Path, kind: str, name: str, facts: Mapping[str, Any]) -> None:
    with replacing(_marker(state, kind, name)) as temporary:
        temporary.write_text(json.dumps({**facts, "host": socket.gethostname(), "at": _now()}, indent=1))


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], within: str = "") -> str:
    """'iou_thre: 0.1 → 0.3, …', of settings within settings too."""
    found = []
    for key in {**old, **new}:
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            found.append(_changes(was, now, f"{within}{key}."))
        elif was != now:
            found.append(f"{within}{key}: {_short(was)} → {_short(now)}")
    return ", ".join(filter(None, found))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"


class _Lock:
    """Held as long as this process or one that it started lives. Parts of one division may run side by side, nothing else may."""

    def __init__(self, state: Path, index: int, count: int):
        self.state, self.index, self.count, self.files = state, index, count, []

    def __enter__(self) -> _Lock:
        try:
            if self.count == 1:
                self._take("lock", fcntl.LOCK_EX)
            else:
                self._take("lock", fcntl.LOCK_SH)
                for other in self.state.glob("lock-of-*"):
                    if other.name != f"lock-of-{self.count}":
                        os.close(self._take(other.name, fcntl.LOCK_EX, keep=False))
                self._take(f"lock-of-{self.count}", fcntl.LOCK_SH)
                self._take(f"lock-{self.index}-of-{self.count}", fcntl.LOCK_EX)
        except InputError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        for file in self.files:
            os.close(file)

    def _take(self, name: str, kind: int, keep: bool = True) -> int:
        file, begun = os.open(self.state / name, os.O_RDWR | os.O_CREAT, 0o644), time.monotonic()
        while True:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    if time.monotonic() - begun < GRACE:
                        time.sleep(0.05)
                        continue
                    os.close(file)
                    raise InputError(
                        f"no other run on {self.state.stem}", "one that is going on", "wait for it, or choose another folder"
                    ) from None
                if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                    raise
                print(
                    f"note: {self.state} is on a file system without locks: see to it yourself that one run at a time uses it",
                    file=sys.stderr,
                )
            if keep:
                self.files.append(file)
            return file


# -- processes on this machine ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Event:
    """An item ended: well, or with an error; `notes` are for people; `worn`: its process is not to be given another."""

    name: str
    error: str = ""
    notes: tuple[str, ...] = ()
    worn: bool = False


class _Signals:
    """Keeps the number of the last of `SIGNALS` instead of acting on it; `before` are the handlers that were there.

    (Only the main thread may do so; on another one signals stay what they were.)
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.all: set[int] = set()
        self.before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._keep) for number in SIGNALS}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _keep(self, number: int, frame: Any) -> None:
        self.received = number
        self.all.add(number)


class _Worker:
    """A process that makes items, told by lines on its standard input which; it answers by lines."""

    def __init__(self, state: Path, place: Mapping[str, str], keep: Sequence[int]):
        self.state, self.name = state, ""
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)  # what this process can import, that one can
        # SLURM signals every process of a step: this one is to outlive them until it is told otherwise
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from vosnb.batch import work; work()", str(state)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=tuple(keep),
                env={**os.environ, **place, "PYTHONPATH": path, "VOSNB_HEADLESS": "1"},
            )  # fmt: skip
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def tell(self, name: str | None) -> None:
        self.name = name or ""
        with suppress(BrokenPipeError):  # it died: its end of the other pipe says so
            self.process.stdin.write(json.dumps(name).encode() + b"\n")
            self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(BrokenPipeError):
                pipe.close()
        if self.name:
            shutil.rmtree(self.state / "tmp" / self.name, ignore_errors=True)


def _supervised(
    state: Path, names: Sequence[str], places: Sequence[Mapping[str, str]], signals: _Signals, keep: Sequence[int] = ()
) -> Iterator[_Event]:
    """Makes these items, in this order, each place taking the next when it is free. Ends early on a signal."""
    waiting = deque(names)
    with selectors.DefaultSelector() as ready:
        workers: set[_Worker] = set()

        def start(place: Mapping[str, str]) -> None:
            worker = _Worker(state, place, keep)
            workers.add(worker)
            ready.register(worker.process.stdout, selectors.EVENT_READ, (worker, place))
            worker.tell(waiting.popleft())

        try:
            for place in places[: len(names)]:
                start(place)
            while workers and signals.received is None:
                for key, _ in ready.select(0.5):
                    worker, place = key.data
                    line = worker.process.stdout.readline()
                    event = _Event(**json.loads(line)) if line.endswith(b"\n") else None  # it may die in the middle
                    if event:
                        more = waiting and not event.worn and signals.received is None
                        worker.tell(waiting.popleft() if more else None)
                    else:
                        ready.unregister(worker.process.stdout)
                        workers.remove(worker)
                        code = worker.process.wait()
                        worker.kill()
                        if worker.name:
                            event = _died(state, worker.name, code)
                        if waiting and signals.received is None:
                            start(place)
                    if event:
                        yield event
        finally:
            for worker in workers:
                worker.kill()


def _died(state: Path, name: str, code: int) -> _Event:
    how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
    error = f"its process died of {how}"
    _write_marker(state, "failed", name, {"error": error})
    return _Event(name, error)


def work() -> None:
    """What a worker's process does: items named on standard input, until it is told `null` or its parent is gone."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    state = Path(sys.argv[1])
    told: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        with open(0, "rb", buffering=0, closefd=False) as lines:  # unbuffered: a buffer would be locked when this process ends
            for line in lines:
                told.put(line)
        os._exit(1)  # the parent is gone: so that nothing here works on while the command is repeated

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes elsewhere
    threading.Thread(target=listen, daemon=True).start()
    job, out = _load(state)
    while (name := json.loads(told.get())) is not None:
        print(json.dumps(_make(job, out, state, name)), file=answers, flush=True)


def _load(state: Path) -> tuple[Job, Path]:
    import cloudpickle

    return cloudpickle.loads((state / "job.pkl").read_bytes())


def _make(job: Job, out: Path, state: Path, name: str) -> dict[str, Any]:
    """One item, from nothing to its marker."""
    begun, private, final = time.monotonic(), state / "tmp" / name, out / name
    shutil.rmtree(private, ignore_errors=True)  # what a killed process left; the job's own half-written files are in it, too
    try:
        if final.is_dir():  # killed between the rename and the marker
            facts: dict[str, Any] = {"seconds": None}
        else:
            private.mkdir()
            facts = job.make(name, private / name)
            _flush(private)
            os.replace(private / name, final)
            shutil.rmtree(private)  # before the marker: after it nobody would look there again
            facts = {"seconds": round(time.monotonic() - begun, 3), **facts}
        _write_marker(state, "done", name, facts)
    except Exception as error:
        said = "".join(traceback.format_exception_only(error)).strip()
        _write_marker(state, "failed", name, {"error": said, "traceback": traceback.format_exc()})
        return {"name": name, "error": said[:2000], "worn": not isinstance(error, InputError)}
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return {"name": name, "notes": facts.get("notes", [])}


def _flush(folder: Path) -> None:
    """To the disk, all files at once: one by one takes thirty times as long. (Where the system cannot, it does so in its own time.)"""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "syncfs"):
        file = os.open(folder, os.O_RDONLY)
        libc.syncfs(file)
        os.close(file)


def _places(jobs: int | None) -> list[dict[str, str]]:
    """Per process what its environment says: its GPU, its share of the cores. What the user has set stays."""
    gpus = _gpus()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = jobs or len(gpus) or max(1, cores // CORES)
    shared = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores // count))}
    return [{**shared, **({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {})} for i in range(count)]


def _gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES lists (numbers or names), else what nvidia-smi finds. torch is not asked: it would take a GPU."""
    if (listed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in listed.split(",") if name.strip()]
    if not shutil.which("nvidia-smi"):
        return []
    found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(i) for i, line in enumerate(line for line in found.splitlines() if line.startswith("GPU "))]


def _show(events: Iterable[_Event], total: int, state: Path, show: bool) -> None:
    for event in progress(events, total, state.stem, "item", show=show):
        for note in event.notes:
            print(f"note: {event.name}: {note}", file=sys.stderr)
        if event.error:
            print(f"failed: {event.name}: {event.error}", file=sys.stderr)


# -- SLURM -----------------------------------------------------------------------------------------------------------------


class Piece:
    """What one element of a SLURM array does: some of the items, on the GPUs that it was given."""

    def __init__(self, state: Path):
        self.state = state

    def __call__(self, names: Sequence[str]) -> None:
        ended = [name for name in names if any(_marker(self.state, kind, name).is_file() for kind in ("done", "failed"))]
        left, places = [name for name in names if name not in ended], _places(len(_gpus()) or 1)
        with _Signals() as signals:
            for event in _supervised(self.state, left, places, signals):
                print(event, flush=True)
            self._hand_back(signals)

    def checkpoint(self, names: Sequence[str]) -> Any:
        """(By submitit.) What is to be done after a requeue: the same; what is done has its marker."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, names)

    def _hand_back(self, signals: _Signals) -> None:
        """What was in hand is given back already. USR2: submitit requeues. TERM alone is often followed by USR2 or KILL: SLURM's
        own preemption requeues by itself."""
        deadline = time.monotonic() + 60
        while signal.SIGTERM in signals.all and signal.SIGUSR2 not in signals.all and time.monotonic() < deadline:
            time.sleep(0.2)
        if signal.SIGUSR2 in signals.all:
            signals.before[signal.SIGUSR2](signal.SIGUSR2, None)
        elif signals.received:
            sys.exit(128 + signals.received)


def _on_slurm(state: Path, costs: Mapping[str, float], settings: dict[str, Any]) -> Iterator[_Event]:
    """Submits what no live job has, then waits and tells what ends."""
    folder = state / "slurm"
    folder.mkdir(exist_ok=True)
    book = folder / "jobs.json"
    recorded: dict[str, list[str]] = json.loads(book.read_text()) if book.is_file() else {}
    live = _live(state)
    taken = {name for job in live for name in recorded[job]}
    if missing := {name: cost for name, cost in costs.items() if name not in taken}:
        submitted = _submit(folder, state, missing, settings)
        recorded |= submitted
        live = [*live, *submitted]
        with replacing(book) as temporary:
            temporary.write_text(json.dumps(recorded))
        print(f"SLURM jobs {next(iter(submitted))} … {list(submitted)[-1]}: they go on without this command", file=sys.stderr)
    open_items, pause = set(costs), 0.5
    while True:
        told = False
        for name in sorted(open_items):
            for kind in ("done", "failed"):
                if (marker := _marker(state, kind, name)).is_file():
                    facts = json.loads(marker.read_text())
                    open_items.discard(name)
                    told = True
                    yield _Event(name, facts.get("error", ""), tuple(facts.get("notes", ())))
        if not open_items or not live:
            return
        if not told:
            time.sleep(pause)
            pause = min(pause * 1.5, 10.0)
            live = _live(state)


def _submit(folder: Path, state: Path, costs: Mapping[str, float], settings: dict[str, Any]) -> dict[str, list[str]]:
    """{job: its items} of one array."""
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.helpers import clean_env

    workers = settings.pop("workers", WORKERS)
    for name, value in (("workers", workers), ("time", settings.get("time", 1))):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name} as a whole number" + " of minutes" * (name == "time"), repr(value), "correct --slurm")
    heaps = pieces(costs, min(PER_WORKER * workers, LARGEST_ARRAY))
    executor = submitit.SlurmExecutor(folder, max_num_timeout=1000)
    usual = {"job_name": "vosnb", "time": 24 * 60, "signal_delay_s": 120, "teardown": TEARDOWN}
    try:
        executor.update_parameters(**{**usual, **settings}, array_parallelism=workers)
    except (ValueError, TypeError) as error:
        raise InputError("settings that submitit's SlurmExecutor takes, and workers", error, "correct --slurm") from None
    cluster = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with clean_env():  # else a notebook that itself is a SLURM job would hand its own settings on
        os.environ.update(cluster)
        try:
            jobs = executor.map_array(Piece(state), heaps)
        except (FailedJobError, FailedSubmissionError) as error:
            raise InputError("SLURM to take the jobs", error, "correct --slurm") from error
    return {job.job_id: heap for job, heap in zip(jobs, heaps, strict=True)}


def _live(state: Path) -> list[str]:
    """Those of the run's SLURM jobs that are waiting or running."""
    book = state / "slurm" / "jobs.json"
    if not book.is_file() or not shutil.which("squeue"):
        return []
    asked = subprocess.run(
        ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i"],
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        raise InputError(
            "an answer from squeue", asked.stderr.strip(), "repeat the command when SLURM answers: jobs go on without it"
        )
    there = set(asked.stdout.split())
    return [job for job in json.loads(book.read_text()) if job in there]
