"""What the benchmarks share: the machine they ran on, whether it was free, paired timings, peak memory, tables."""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tokenclean.store import write_json

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

REPEATS = 5
"""Repeats below this make no evidence."""
BUSY_CORES = 0.5

# Rows, depth, columns of a product: large squares, and a layer's products over a pack of tokens.
GEMM_SHAPES = {
    "cpu": ((2048, 2048, 2048), (3072, 3072, 3072), (4096, 576, 1536), (4096, 1024, 4096)),
    "cuda": ((8192, 8192, 8192), (16384, 16384, 16384), (8192, 4096, 14336), (16384, 4096, 4096)),
}
GEMM_SECONDS = 0.3


@dataclass(frozen=True)
class Machine:
    """Where and when figures were measured. ``load``: the load averages of 1, 5 and 15 minutes before."""

    processor: str
    cores: int
    system: str
    python: str
    torch: str | None
    threads: int
    gpu: str | None
    load: tuple[float, ...]
    date: str

    def __str__(self) -> str:
        torch = f"; torch {self.torch}, {self.threads} threads" if self.torch else f"; {self.threads} thread"
        gpu = f"; {self.gpu}" if self.gpu else ""
        load = " ".join(f"{value:.2f}" for value in self.load)
        python = f"Python {self.python} on {self.system}"
        return f"{self.processor}, {self.cores} cores{gpu}{torch}; {python}; load {load}; {self.date}"


def describe(device: str | None) -> Machine:
    """This machine, now. ``device``: what torch runs on; None for a benchmark of one thread without torch."""
    version, threads, gpu = None, 1, None
    if device is not None:
        import torch

        version, threads = torch.__version__, torch.get_num_threads()
        gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return Machine(
        processor=_processor(),
        cores=len(_own_cores()),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=version,
        threads=threads,
        gpu=gpu,
        load=tuple(round(value, 2) for value in os.getloadavg()),
        date=datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
    )


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _own_cores() -> set[int]:
    if sys.platform == "linux":
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


@dataclass(frozen=True)
class ProcessorTime:
    """Seconds since some start: of the clock, of work on the cores that this process may use, of its own work."""

    clock: float
    busy: float
    own: float

    @classmethod
    def now(cls) -> ProcessorTime | None:
        """None where the system does not tell (no ``/proc/stat``)."""
        try:
            stat = Path("/proc/stat").read_text()
        except OSError:
            return None
        return cls(time.monotonic(), busy_seconds(stat, _own_cores()), sum(os.times()[:4]))

    def others_since(self, before: ProcessorTime) -> float:
        """Cores that all other processes used on average since ``before``."""
        seconds = max(self.clock - before.clock, 1e-9)
        return max(0.0, (self.busy - before.busy) - (self.own - before.own)) / seconds


def busy_seconds(stat: str, cores: Iterable[int]) -> float:
    """Seconds of work of the given cores, from the text of ``/proc/stat``; time stolen by other guests is work too."""
    names = {f"cpu{core}" for core in cores}
    ticks = 0
    for line in stat.splitlines():
        name, *counts = line.split()
        if name in names:
            user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, counts[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def refuse_if_busy(limit: float = BUSY_CORES, *, allow: bool = False, seconds: float = 1.0) -> str | None:
    """Raise SystemExit where other processes use more than ``limit`` cores just now.

    With ``allow`` the sentence is returned instead, to stand in the result; None where the machine is free. Where the
    system does not tell, the load average counts.
    """
    before = ProcessorTime.now()
    if before is None:
        used, measured = os.getloadavg()[0], "by the load average"
    else:
        time.sleep(seconds)
        after = ProcessorTime.now()
        used, measured = after.others_since(before) if after else 0.0, f"over {seconds:g} s"
    if used <= limit:
        return None
    sentence = f"the machine is busy: other processes used {used:.2f} cores {measured} before the start"
    if not allow:
        raise SystemExit(f"{sentence}; timings would mean nothing. Wait, or measure all the same with --allow-busy")
    return f"{sentence}; no evidence"


@dataclass(frozen=True)
class Timings:
    """``seconds``: of each way, a number a repeat. ``results``: what each way gave first. ``others_cores``: cores used
    by other processes meanwhile, on average; None where the system does not tell."""

    seconds: dict[str, list[float]]
    results: dict[str, Any]
    others_cores: float | None

    @property
    def others_text(self) -> str:
        if self.others_cores is None:
            return "what other processes used is not known"
        return f"other processes used {self.others_cores:.2f} cores meanwhile"

    def warnings(self, repeats: int) -> list[str]:
        """Why these are no evidence, in sentences."""
        found = []
        if repeats < REPEATS:
            found.append(f"no evidence: {repeats} of at least {REPEATS} repeats")
        if self.others_cores is not None and self.others_cores > BUSY_CORES:
            found.append(f"no evidence: other processes used {self.others_cores:.2f} cores during the timings")
        return found


def interleaved(
    ways: Mapping[str, Callable[[], Any]], repeats: int, device: str = "cpu", *, keep_results: bool = True
) -> Timings:
    """Each way in turn, ``repeats`` times over, so that a slow minute of the machine meets all ways alike."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, Any] = {}
    before = ProcessorTime.now()
    for _ in range(repeats):
        for name, work in ways.items():
            taken, result = timed(work, device)
            seconds[name].append(taken)
            if keep_results:
                results.setdefault(name, result)
    after = ProcessorTime.now()
    return Timings(seconds, results, after.others_since(before) if before and after else None)


def timed(work: Callable[[], T], device: str = "cpu") -> tuple[float, T]:
    """Seconds from an idle device to an idle device, and the result."""
    synchronize(device)
    started = time.perf_counter()
    result = work()
    synchronize(device)
    return time.perf_counter() - started, result


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Ratio:
    """Median, lowest and highest of paired ratios."""

    median: float
    low: float
    high: float


def times_as_fast(baseline_seconds: Sequence[float], seconds: Sequence[float]) -> Ratio:
    """How many times as fast as the baseline: baseline / way, round by round."""
    ratios = [a / b for a, b in zip(baseline_seconds, seconds, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def torch_product(rows: Tensor, weight: Tensor) -> Callable[[], object]:
    """torch's product of rows (M, K) and a weight (N, K) of one dtype, ready to run."""
    import torch

    product = torch.empty(len(rows), len(weight), device=rows.device, dtype=rows.dtype)
    return lambda: torch.mm(rows, weight.T, out=product)


def gemm_gflops(
    device: str, dtype_name: str, product: Callable[[Tensor, Tensor], Callable[[], object]] = torch_product
) -> float:
    """The most GFLOP/s (1e9 FLOP) that a matrix product reaches on the device, over GEMM_SHAPES.

    ``dtype_name``: ``float32``, without TF32 or bf16 inside, or ``bfloat16``, in and out. Each shape runs three times,
    and on for GEMM_SECONDS; the fastest time counts.
    """
    import torch

    dtype = getattr(torch, dtype_name)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    best = 0.0
    try:
        for rows, depth, columns in GEMM_SHAPES["cuda" if device.startswith("cuda") else "cpu"]:
            a, weight = (torch.randn(n, depth, device=device).to(dtype) for n in (rows, columns))
            with torch.no_grad():
                fastest = _fastest(product(a, weight), device)
            best = max(best, 2 * rows * depth * columns / fastest / 1e9)
    finally:
        torch.set_float32_matmul_precision(before)
    return best


def _fastest(work: Callable[[], object], device: str) -> float:
    timed(work, device)
    times = [timed(work, device)[0] for _ in range(3)]
    end = time.perf_counter() + GEMM_SECONDS
    while time.perf_counter() < end:
        times.append(timed(work, device)[0])
    return min(times)


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """``function(*arguments)`` in a new process of its own; a function of a module, with arguments to be pickled."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def reset_peak_memory(device: str) -> None:
    """Count ``peak_memory`` from here; where the system refuses, it counts from the start of the process."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: str) -> int:
    """The most bytes held at a time: on a GPU what torch allocated there, else the process's resident memory."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def watched_command(command: Sequence[str], **environment: str) -> tuple[float, int]:
    """Seconds and peak resident bytes of a command, as the system tells of it at its end.

    The peak of a child begins with its parent's, so the caller should be small. Raises SystemExit with what the command
    said where it fails.
    """
    with tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{shlex.join(command)} failed with {process.returncode}:\n{said.read()}")
    return seconds, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, markdown: bool = False) -> str:
    """The first column to the left, all others to the right."""
    lines = [list(header), *map(list, rows)]
    if markdown:
        text = ["| " + " | ".join(line) + " |" for line in lines]
        text.insert(1, "|---|" + "---:|" * (len(header) - 1))
        return "\n".join(text)
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    aligned = (
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))] for line in lines
    )
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def found_or_measured(
    file: Path, expected: Mapping[str, Any], title: str, measure: Callable[..., Mapping[str, Any]], *arguments: Any
) -> dict[str, Any]:
    """The document in ``file``; where there is none, that of ``measure(*arguments)`` in a process of its own, since
    memory grows with trainings, written there together with ``expected``, what identifies it. ``title``: says what is
    measured.

    Raises SystemExit for a file in which anything of ``expected`` differs.
    """
    if not file.exists():
        print(title, file=sys.stderr, flush=True)
        document = in_fresh_process(measure, *arguments)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {**document, **expected})
    stored = json.loads(file.read_text(encoding="utf-8"))
    if any(stored.get(key) != value for key, value in expected.items()):
        raise SystemExit(f"{file}: was measured with {stored.get('model')} and other settings; give another --output")
    return stored


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that every benchmark has."""
    parser.add_argument("--allow-busy", action="store_true", help="measure even if the machine is busy, and say so")
    parser.add_argument("--markdown", action="store_true", help="print tables as Markdown")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write every figure and raw time")


def report(
    benchmark: str, machine: Machine, warnings: Sequence[str], figures: Mapping[str, Any], text: str, options: Any
) -> None:
    """Print what was run where, the warnings and the text; write it all to ``options.json`` if that is given."""
    command = f"python -m benchmarks.{benchmark} {shlex.join(sys.argv[1:])}".rstrip()
    quote = "`" if options.markdown else ""
    lines = [f"{quote}{command}{quote}", str(machine), *(f"WARNING: {warning}" for warning in warnings), text]
    print(("\n\n" if options.markdown else "\n").join(lines))
    if options.json is not None:
        write_json(
            options.json, {"command": command, "machine": asdict(machine), "warnings": list(warnings), **figures}
        )
