"""LoRA adapters on one base, round after round, never merged into it.

Round t trains a fresh LoRA on the last model (§4.3.2). The last model is the base with the LoRAs of all earlier
rounds; their sum is one LoRA of the summed rank, so every θ_t is the original base and a single ordinary adapter:
exact, small on disk, and loadable by anyone. Or one LoRA is trained on through all rounds, and its rank stays.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tokenclean.errors import MissingExtraError, ModelError
from tokenclean.models.loading.hub_models import hub_options
from tokenclean.models.loading.safety import adapter_folder
from tokenclean.processes import SINGLE_PROCESS, Processes
from tokenclean.recipe import LoraSettings
from tokenclean.training.sharding import whole

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

EARLIER = "earlier_rounds"
ROUND = "round"

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_LORA_A = re.compile(r"\.lora_(embedding_)?A\b")


def add_fresh_lora(model: PreTrainedModel, settings: LoraSettings, earlier: Path | None) -> PeftModel:
    """The base with the earlier rounds' adapter (frozen, without dropout) and a fresh LoRA, the only trained part.

    Raises MissingExtraError without peft, ModelError where a target module does not exist, or where the earlier adapter
    and the fresh LoRA cannot be summed into one.
    """
    try:
        from peft import LoraConfig, LoraModel, PeftConfig, PeftModel, TaskType
    except ImportError as error:
        raise MissingExtraError("peft", "train", "LoRA training") from error

    targets = settings.target_modules
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]  # peft computes alpha / r with floats as well
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    try:
        if earlier is None:
            wrapped = PeftModel(model, config, adapter_name=ROUND)
        else:
            folder = str(adapter_folder(str(earlier), hub_options(str(earlier), None)))
            before = PeftConfig.from_pretrained(folder)
            vars(before)["lora_dropout"] = 0.0
            wrapped = PeftModel.from_pretrained(model, folder, adapter_name=EARLIER, config=before)
            wrapped.add_adapter(ROUND, config)
    except ValueError as error:
        raise ModelError(f"cannot add a LoRA to {type(model).__name__}: {' '.join(str(error).split())}") from error
    _check_targets(wrapped, targets)
    if earlier is not None:
        _check_summable(wrapped, earlier)
    assert isinstance(wrapped.base_model, LoraModel)
    wrapped.base_model.set_adapter([ROUND] if earlier is None else [EARLIER, ROUND])
    for name, parameter in wrapped.named_parameters():
        parameter.requires_grad_(ROUND in name.split("."))
    return wrapped


def go_on_with_lora(model: PreTrainedModel, settings: LoraSettings, folder: Path) -> PeftModel:
    """The base with the LoRA that ``save_lora`` wrote into ``folder``, to be trained on.

    Raises as ``add_fresh_lora``, and ModelError where the LoRA there does not fit ``settings``.
    """
    wrapped = add_fresh_lora(model, settings, None)
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    saved, written = load_file(folder / _WEIGHTS), json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    fresh = get_peft_model_state_dict(wrapped, adapter_name=ROUND, save_embedding_layers=False)
    is_same_scale = (written["r"], written["lora_alpha"]) == (settings.rank, settings.alpha)
    if not is_same_scale or {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in fresh.items()}:
        raise ModelError(
            f"{folder}: its LoRA of rank {written['r']} and alpha {written['lora_alpha']:g} is not one of rank "
            f"{settings.rank} and alpha {settings.alpha:g} on the same modules; keep lora.* as it was"
        )
    set_peft_model_state_dict(wrapped, saved, adapter_name=ROUND)
    return wrapped


def _check_targets(model: PeftModel, targets: str | tuple[str, ...]) -> None:
    """Peft itself complains only where no target at all is found."""
    modules = {name.partition(".lora_")[0] for name in _parameters_of(model, ROUND)}
    names = () if isinstance(targets, str) else targets
    if missing := [t for t in names if not any(module.endswith(f".{t}") for module in modules)]:
        raise ModelError(f"lora.target_modules: the model has no module {', '.join(missing)} that a LoRA can adapt")


def _check_summable(model: PeftModel, earlier: Path) -> None:
    """Two LoRAs are one LoRA of the summed rank where both adapt the same modules, each with one rank and scale."""
    other = _parameters_of(model, EARLIER) ^ _parameters_of(model, ROUND)
    if other:
        raise ModelError(
            f"{earlier}: adapts other modules than this round, or not as a plain LoRA ({min(other)}); "
            "keep lora.target_modules as they were"
        )
    config = _config_of(model, EARLIER)
    if config.rank_pattern or config.alpha_pattern or config.bias != "none":
        raise ModelError(f"{earlier}: has ranks, alphas or biases of single modules; merge it into its base first")


def _parameters_of(model: PeftModel, adapter: str) -> set[str]:
    """Names of an adapter's parameters, without the adapter's name."""
    names = (name.split(".") for name, _ in model.named_parameters())
    return {".".join(part for part in parts if part != adapter) for parts in names if adapter in parts}


def _config_of(model: PeftModel, adapter: str) -> LoraConfig:
    from peft import LoraConfig

    config = model.peft_config[adapter]
    assert isinstance(config, LoraConfig)
    return config


def save_rounds(model: PeftModel, folder: Path, *, base: str, processes: Processes = SINGLE_PROCESS) -> None:
    """Write the sum of the earlier adapter, if there is one, and the round's LoRA as one adapter on ``base``.

    All ``processes`` have to call it, since each may hold a part; the first writes.
    """
    state, rank = _unit_scale_state(model, ROUND)
    if EARLIER in model.peft_config:
        before, earlier_rank = _unit_scale_state(model, EARLIER)
        state = {k: torch.cat([before[k], v], dim=0 if _LORA_A.search(k) else 1) for k, v in state.items()}
        rank += earlier_rank
    if processes.is_first:
        _write_adapter(model, folder, state, base, r=rank, lora_alpha=rank, use_rslora=False)


def save_lora(model: PeftModel, folder: Path, *, base: str, processes: Processes = SINGLE_PROCESS) -> None:
    """Write the LoRA as an adapter on ``base``, its tensors as they were trained: ``go_on_with_lora`` takes up exactly
    these, and the optimizer's moments belong to their scale. ``processes``: as for ``save_rounds``."""
    state = _state_of(model, ROUND)
    if processes.is_first:
        _write_adapter(model, folder, state, base)


def _write_adapter(
    model: PeftModel, folder: Path, state: dict[str, torch.Tensor], base: str, **changes: float | bool
) -> None:
    """``changes``: of the round's configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / _WEIGHTS)
    written = _config_of(model, ROUND).to_dict()
    written.update(base_model_name_or_path=base, lora_dropout=0.0, inference_mode=True, **changes)
    text = json.dumps(written, indent=2, sort_keys=True, default=lambda v: sorted(v) if isinstance(v, set) else str(v))
    (folder / _CONFIG).write_text(text + "\n")


def _unit_scale_state(model: PeftModel, adapter: str) -> tuple[dict[str, torch.Tensor], int]:
    """An adapter's tensors in float32, its scale multiplied into them, and its rank.

    A and B share the scale evenly, so neither overflows in low precision.
    """
    config = _config_of(model, adapter)
    scale = math.sqrt(config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r))
    return {k: v.float() * scale for k, v in _state_of(model, adapter).items()}, config.r


def _state_of(model: PeftModel, adapter: str) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return {k: whole(v).cpu() for k, v in state.items()}
