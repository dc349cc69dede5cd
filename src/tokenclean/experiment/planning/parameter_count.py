"""How many parameters a base model has, where possible without torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from tokenclean.models.loading.hub_models import find_file, hub_options, read_json
from tokenclean.models.loading.load import ModelSource, load_config, resolve_source
from tokenclean.recipe import ModelSettings


def parameter_count(settings: ModelSettings, note: Callable[[str], None] = lambda text: None) -> int:
    """Parameters of the base model, from the headers of its weight files where they are on this machine, else from its
    configuration; no weight is loaded. ``note``: called before torch is loaded. Raises ModelError for an unknown model.
    """
    source = resolve_source(settings.base, revision=settings.revision, trusted=settings.trust_remote_code)
    count = _count_in_files(source)
    if count is None:
        note(f"counting the parameters of {source.base} by its configuration")
        from tokenclean.experiment.planning.memory import model_without_content

        count = sum(parameter.numel() for parameter in model_without_content(load_config(source)).parameters())
    return count


def _count_in_files(source: ModelSource) -> int | None:
    """Numbers in the safetensors files beside the configuration; None where one is missing, damaged or quantized."""
    if source.base.endswith(".gguf"):
        return None
    config = find_file(source.base, "config.json", hub_options(source.base, source.revision))
    if config is None or "quantization_config" in read_json(config):
        return None
    from safetensors import SafetensorError

    index = config.with_name("model.safetensors.index.json")
    try:
        names = set(read_json(index)["weight_map"].values()) if index.is_file() else {"model.safetensors"}
        return sum(_numbers_in(config.with_name(name)) for name in names)
    except (OSError, KeyError, SafetensorError):
        return None


def _numbers_in(file: Path) -> int:
    from safetensors import safe_open

    with safe_open(file, "numpy") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
