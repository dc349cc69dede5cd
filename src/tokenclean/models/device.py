"""The device that a command's or a recipe's name stands for."""

from __future__ import annotations

from tokenclean.errors import RecipeError


def resolve_device(name: str, *, local_rank: int | None = None) -> str:
    """``auto`` is the GPU where there is one; any other name is taken as it is.

    ``local_rank``: this process's number among those of its machine, where several share the work; ``auto`` and
    ``cuda`` are then the GPU of that number. Raises RecipeError where torch cannot use the device here.
    """
    import torch

    if name == "auto" and not torch.cuda.is_available():
        return "cpu"
    if name in ("auto", "cuda") and local_rank is not None:
        name = f"cuda:{local_rank}"
    elif name == "auto":
        return "cuda"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(
            f"{name!r} cannot be used here ({reason}); give cpu, cuda, cuda:1, … or auto", "device"
        ) from error
    return name
