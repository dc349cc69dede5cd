"""This machine: the device that a name in a command or recipe refers to, what its processor can do, its cache."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tokenclean.errors import RecipeError

if TYPE_CHECKING:
    import torch

    from tokenclean.executors import Executor


def device_for(executor: Executor, name: str) -> str:
    """The torch device on which an executor computes where a command or recipe says ``name``.

    Each process of a machine has a GPU of its own. Raises RecipeError where actors compute on another, and as
    ``resolve_device``.
    """
    actors, processes = executor.actors_device, executor.processes
    if actors is None:
        return resolve_device(name, local_rank=processes.local_rank if processes.count > 1 else None)
    if name not in ("auto", actors):
        raise RecipeError(
            f"{name!r}: actors of Ray compute on {actors}, by their number of GPUs; give auto, or another --num-gpus "
            "(executor.num_gpus)",
            "device",
        )
    return actors


def resolve_device(name: str, *, local_rank: int | None = None) -> str:
    """``auto`` is the GPU where there is one; any other name stays unchanged.

    ``local_rank``: this process's number among those of its machine, where several share the work; ``auto`` and
    ``cuda`` are then the GPU of that number. Raises RecipeError where torch cannot use the device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if local_rank is None or name == "cpu":
            return name
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank}"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(
            f"{name!r} cannot be used here ({reason}); give cpu, cuda, cuda:1, … or auto", "device"
        ) from error
    return name


def give_back_memory() -> None:
    """Collect what nobody holds any more, and return it to the device or the system."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Return to the system what glibc's heap holds free.

    Packs differ in size, so freed tensors leave holes that the next ones do not fit into: without trimming a training
    took some MiB more with every step.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # musl has none
        libc.malloc_trim(0)


def limit_compiled_products() -> None:
    """Let torch's products on a CPU keep the code of the last 128 shapes, not of 1,024; some hundred KiB each.

    To be called before the first such product of the process.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")


def gains_from_bf16(device: torch.device) -> bool:
    """Whether products of bf16 are faster on the device than those of float32."""
    return device.type != "cpu" or cpu_multiplies_bf16()


@lru_cache(maxsize=1)
def cpu_multiplies_bf16() -> bool:
    """Whether this processor has bf16 products (AVX-512 BF16, AMX, ARM's BF16); without them float32 is faster."""
    flags = cpu_flags()
    if not flags:
        import torch

        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return not flags.isdisjoint(("avx512_bf16", "amx_bf16", "bf16"))


def cpu_flags() -> frozenset[str]:
    """Instructions and features of this processor, as Linux names them; empty on another system."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(
        flag for line in lines if line.startswith(("flags", "Features")) for flag in line.partition(":")[2].split()
    )


def cache_folder() -> Path:
    """Where converted models and compiled kernels are.

    ``$TOKENCLEAN_CACHE``, else ``$XDG_CACHE_HOME/tokenclean``, else ``~/.cache/tokenclean``.
    """
    if named := os.environ.get("TOKENCLEAN_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokenclean"
