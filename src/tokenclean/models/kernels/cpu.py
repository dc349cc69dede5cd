"""Our own matrix products, attention and head for CPUs, compiled once on the machine that runs them.

torch's float32 products reach half of what many processors can do, and none of its CPU products takes bf16 and gives
float32. Where the kernels are not available — no compiler, another kind of processor — torch's own products are used,
and the log says so. A processor without bf16 instructions has the float32 kernels alone.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch import library as torch_library

from tokenclean.models.attention.features import Features
from tokenclean.models.device import cache_folder, cpu_multiplies_bf16
from tokenclean.store import atomic_path, file_hash, fingerprint

logger = logging.getLogger(__name__)

SWITCH = "TOKENCLEAN_KERNELS"
"""Environment variable; ``off`` means torch's own products."""

_PANEL = 64
_SOURCES = Path(__file__).parent
_COMPILERS = ("g++", "c++")
_COMPILE_SECONDS = 300


@lru_cache(maxsize=1)
def missing_kernels() -> str | None:
    """Why the kernels cannot be used here, or None where they can; compiles and checks them the first time.

    Compiling takes about 20 seconds, once for each machine, torch and version of the source.
    """
    try:
        torch.ops.load_library(str(_library()))
        # What torch.compile has to know of it.
        torch_library.register_fake(
            "tokenclean::linear", lambda x, packed, columns, bias, is_pair: x.new_empty(x.shape[0], columns)
        )
        _check(as_bf16=False)
    except _UnavailableError as error:
        reason = str(error)
    except (OSError, subprocess.SubprocessError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
    else:
        return None
    level = logging.INFO if os.environ.get(SWITCH) == "off" else logging.WARNING
    logger.log(level, "scoring on this CPU uses torch's own products, which are slower: %s", reason)
    return reason


@lru_cache(maxsize=1)
def has_bf16_kernels() -> bool:
    """Whether the kernels multiply bf16 here, checked the first time; most processors with AVX2 alone do not.

    Where they do not, nothing is rounded to bf16, and the log says so.
    """
    if missing_kernels() is not None:
        return False
    reason = None if cpu_multiplies_bf16() else "it has no instructions for it"
    if reason is None:
        try:
            _check(as_bf16=True)
        except (_UnavailableError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
    if reason is not None:
        logger.info("this processor multiplies no bf16 (%s): every precision computes in float32", reason)
    return reason is None


def pack(weight: Tensor, *, as_bf16: bool) -> Tensor:
    """A weight (N, K) in panels of 64 output features, as the kernels need it; padded with zeros, always a copy."""
    features, depth = weight.shape
    panels = -(-features // _PANEL)
    step = 2 if as_bf16 else 1
    depth_even = -(-depth // step) * step
    filling = (0, depth_even - depth, 0, panels * _PANEL - features)
    padded = torch.nn.functional.pad(weight.detach(), filling) if any(filling) else weight.detach()
    shape = (panels, _PANEL, depth_even // 2, 2) if as_bf16 else (panels, _PANEL, depth_even)
    dtype = torch.bfloat16 if as_bf16 else torch.float32
    return padded.to(dtype).reshape(shape).transpose(1, 2).clone(memory_format=torch.contiguous_format)


def linear(x: Tensor, packed: Tensor, columns: int, bias: Tensor | None, is_pair: bool = False) -> Tensor:
    """x Wᵀ + b for a packed weight: float32 (…, K) to float32 (…, ``columns``), summed in float32.

    ``is_pair``: the rows are those of one model and then as many of another. The product of the second's row x + d is
    x Wᵀ + d Wᵀ, with x and d rounded apart, so that what rounding does to x cancels in the difference of the two.
    """
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    return torch.ops.tokenclean.linear(rows, packed, columns, bias, is_pair).view(*x.shape[:-1], columns)


def measures(
    hidden_P_H: Tensor,
    packed: Tensor,
    targets_P: Tensor,
    vocabulary: int,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    with_further: bool = True,
    is_pair: bool = False,
) -> Tensor:
    """Loss, entropy (nats), whether the target is likeliest (1.0, 0.0), collision Σ p²: float32 (4, P). Logits exist
    only in tiles. ``with_further``: without it entropy and collision hold anything, and it goes faster.

    ``is_pair``: ``hidden_P_H`` has 2 P rows, as those of ``linear``, and the result 2 P columns.
    """
    hidden_P_H, targets_P = hidden_P_H.contiguous(), targets_P.contiguous()
    return torch.ops.tokenclean.measures(
        hidden_P_H, packed, targets_P, vocabulary, bias, scale, softcap or 0.0, with_further, is_pair
    )


def segment_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], features: Features, allow_bf16: bool = False
) -> Tensor:
    """Causal attention of each segment to itself: (1, heads, T, d) float32 each to (1, T, heads, d), without dropout.

    ``key`` and ``value`` may have fewer heads. ``allow_bf16``: products may take bf16 and sum in float32, where the
    processor has such; softmax is always float32.
    """
    scale, softcap, window = features.scale(query), features.softcap or 0.0, features.window or 0
    as_bf16 = allow_bf16 and has_bf16_kernels()
    return torch.ops.tokenclean.segment_attention(query, key, value, list(lengths), scale, softcap, window, as_bf16)


class _UnavailableError(Exception):
    pass


def _library() -> Path:
    """The compiled kernels, from the cache or compiled now."""
    if os.environ.get(SWITCH) == "off":
        raise _UnavailableError(f"{SWITCH}=off")
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise _UnavailableError(f"no kernels for {platform.system()} on {platform.machine()}")
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in ("AVX512", "AVX2"):
        raise _UnavailableError(f"the processor's {capability} instructions are not enough")
    named = [os.environ["CXX"]] if os.environ.get("CXX") else list(_COMPILERS)
    compiler = next((found for name in named if (found := shutil.which(name))), None)
    if compiler is None:
        raise _UnavailableError(f"no C++ compiler found ({', '.join(named)}); install g++ to score about twice as fast")
    flags = ["-O3", "-march=native", "-std=c++20", "-fPIC", "-shared", "-fopenmp", "-w"]
    flags += [f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}"]
    flags += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60).stdout
    sources = [file_hash(path) for path in sorted(_SOURCES.iterdir()) if path.suffix in (".cpp", ".h")]
    key = fingerprint([sources, torch.__version__, version, flags, _processor()])
    library = cache_folder() / "kernels" / f"{key[:16]}.so"
    if not library.is_file():
        _compile(compiler, flags, library)
    return library


def _compile(compiler: str, flags: list[str], library: Path) -> None:
    logger.info("compiling the CPU kernels once for this machine (about 20 s)")
    home = Path(torch.__file__).parent
    library.parent.mkdir(parents=True, exist_ok=True)
    # torch's own OpenMP comes first, so that the compiler's is not needed: two of them would fight for the cores.
    openmp = [str(path) for folder in ("lib", "../torch.libs") for path in sorted((home / folder).glob("libgomp*.so*"))]
    links = ["-Wl,--as-needed", *openmp[:1], f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10"]
    with atomic_path(library) as temporary:
        sources = map(str, sorted(_SOURCES.glob("*.cpp")))
        command = [compiler, *flags, f"-I{home / 'include'}", "-o", str(temporary), *sources, *links]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise _UnavailableError(f"{compiler} did not finish within {_COMPILE_SECONDS} s") from error
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise _UnavailableError(f"{compiler} failed: {lines[0] if lines else done.returncode}")


def _processor() -> str:
    """What ``-march=native`` depends on, since machines may share a cache folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags")
    return "\n".join(sorted({line for line in lines if line.split("\t")[0].strip() in wanted}))


def _check(*, as_bf16: bool) -> None:
    """Compare the kernels with torch on small random numbers; raise where they differ or the processor refuses."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((70, 33), (100, 33), (100,)))
    targets = torch.arange(70)
    packed = pack(weight, as_bf16=as_bf16)
    a, b = (x.bfloat16().float(), weight.bfloat16().float()) if as_bf16 else (x, weight)
    logits = a.double() @ b.double().T + bias
    if not torch.allclose(linear(x, packed, 100, bias).double(), logits, atol=1e-4):
        raise _UnavailableError("their products differ from torch's on this processor")
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    if not torch.allclose(measures(x, packed, targets, 100, bias=bias)[0].double(), expected, atol=1e-4):
        raise _UnavailableError("their losses differ from torch's on this processor")
