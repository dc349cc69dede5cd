"""Loading a causal LM from whatever names it: Hub id, folder, GGUF file, or a PEFT adapter on a base."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenclean.errors import MissingExtraError, ModelError
from tokenclean.store import file_hash, fingerprint

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    ``base``: Hub id, folder, or GGUF file (on the Hub as ``org/repo/name.gguf``). ``adapter``: folder or Hub id of a
    PEFT adapter that stands on the base, or None. ``revision``: branch, tag or commit of a Hub id.
    """

    base: str
    adapter: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.base} + {self.adapter}" if self.adapter else self.base


def resolve_source(name: str, *, base: str | None = None, revision: str | None = None) -> ModelSource:
    """Tell a full model from an adapter by its ``adapter_config.json``, which also names the adapter's base.

    ``base`` replaces the base that the adapter names (say, a local copy). Raises ModelError for a local path that
    does not exist or is not a model.
    """
    path = Path(name).expanduser()
    if name.endswith(".gguf"):
        return ModelSource(str(path) if path.is_file() else name, None, revision)
    if path.is_dir():
        name = str(path)
        if not (path / _ADAPTER_CONFIG).is_file():
            if not (path / "config.json").is_file():
                raise ModelError(f"{name}: holds neither config.json (a model) nor {_ADAPTER_CONFIG} (an adapter)")
            return ModelSource(name, None, revision)
    elif path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{name}: no such model folder; give a folder, a .gguf file or a Hub id such as org/name")
    if not path.is_dir():  # a Hub that cannot be reached is told at once, not after each file's retries
        _cached_file(name, "config.json", revision, must_reach=True)
    config_file = _cached_file(name, _ADAPTER_CONFIG, revision)
    if config_file is None:
        return ModelSource(name, None, revision)
    try:
        named = json.loads(Path(config_file).read_text()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{config_file}: not the JSON object that an adapter's configuration is ({error})") from error
    named = base or named
    if not named:
        raise ModelError(f"{name}: its {_ADAPTER_CONFIG} names no base model; give the base too")
    return ModelSource(named, name, None if base is None else revision)


def load_model(source: ModelSource | str, *, device: str | torch.device = "cpu") -> PreTrainedModel:
    """Load in float32 and eval mode; an adapter stays unmerged (merging rounds its delta away in low precision).

    Returns a transformers causal LM, or the PEFT model around one. Raises ModelError naming what could not be loaded,
    a tensor that the files lack included (transformers would put random numbers in its place).
    """
    import torch
    from transformers import AutoModelForCausalLM

    source = resolve_source(source) if isinstance(source, str) else source
    name, options = _from_pretrained_arguments(source)
    if "gguf_file" in options:
        options["quantization_config"] = _gguf_config()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except Exception as error:  # a damaged file surfaces as whatever its reader raises (SafetensorError, struct.error)
        raise _not_loadable(source.base, error) from error
    model, report = loaded
    _check_complete(source.base, report)
    if source.adapter is not None:
        model = _attach_adapter(model, source.adapter)
    return model.to(device).eval()


def load_tokenizer(source: ModelSource | str) -> PreTrainedTokenizerBase:
    """The base's fast tokenizer. Raises ModelError where there is none."""
    from transformers import AutoTokenizer

    source = resolve_source(source) if isinstance(source, str) else source
    name, options = _from_pretrained_arguments(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except Exception as error:
        raise _not_loadable(source.base, error) from error
    if not tokenizer.is_fast:
        raise ModelError(f"{source.base}: has only a slow tokenizer, which gives no character offsets (tokenizer.json)")
    return tokenizer


def load_config(source: ModelSource) -> PreTrainedConfig:
    """The base's configuration, without its weights. Raises ModelError."""
    from transformers import AutoConfig

    name, options = _from_pretrained_arguments(source)
    try:
        return AutoConfig.from_pretrained(name, **options)
    except Exception as error:
        raise _not_loadable(source.base, error) from error


def source_fingerprint(source: ModelSource) -> str:
    """Hash of what the weights are: file hashes of local files, the name and resolved commit of a Hub id."""
    return fingerprint([_identity(source.base, source.revision), source.adapter and _identity(source.adapter, None)])


def _identity(name: str, revision: str | None) -> Any:
    path = Path(name)
    if path.is_file():
        return [file_hash(path)]
    if path.is_dir():
        weights = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".json", ".bin", ".jinja"))
        return [[p.name, file_hash(p)] for p in weights]
    config_file = _cached_file(name, "config.json", revision) or _cached_file(name, _ADAPTER_CONFIG, revision)
    commit = Path(config_file).parent.name if config_file else None  # cache layout: snapshots/<commit>/config.json
    return [name, revision, commit]


def _cached_file(name: str, file: str, revision: str | None, *, must_reach: bool = False) -> str | None:
    """Path of a file in the folder or the Hub's cache, None where there is none; with ``must_reach``, a Hub that
    cannot be asked is a ModelError."""
    from transformers.utils.hub import cached_file

    try:
        return cached_file(
            name,
            file,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=must_reach,
        )
    except OSError as error:  # no valid Hub id, or no such revision
        raise _not_loadable(name, error) from error


def _from_pretrained_arguments(source: ModelSource) -> tuple[str, dict[str, Any]]:
    options: dict[str, Any] = {} if source.revision is None else {"revision": source.revision}
    if not source.base.endswith(".gguf"):
        return source.base, options
    folder, _, file = source.base.replace("\\", "/").rpartition("/")
    return folder or ".", {**options, "gguf_file": file}


def _gguf_config() -> Any:
    try:
        import gguf  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError("gguf", "gguf", "reading a GGUF file") from error
    from transformers import GgufConfig

    return GgufConfig(dequantize=True)  # without it, saving and casting the model raise


def _attach_adapter(model: Any, adapter: str) -> Any:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtraError("peft", "train", "loading an adapter") from error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            wrapped = PeftModel.from_pretrained(model, adapter, is_trainable=False)
    except Exception as error:
        raise _not_loadable(adapter, error) from error
    if wrapped.active_peft_config.is_prompt_learning:
        raise ModelError(
            f"{adapter}: prompt-learning adapters add positions and cannot be scored; use LoRA or the like"
        )
    return wrapped


def _check_complete(name: str, report: dict[str, Any]) -> None:
    if report["missing_keys"]:
        tensors = sorted(report["missing_keys"])
        raise ModelError(f"{name}: its files lack {len(tensors)} of the model's tensors, such as {tensors[0]}")
    if report["mismatched_keys"]:
        tensor, found, expected = min(report["mismatched_keys"])
        raise ModelError(
            f"{name}: {tensor} has shape {tuple(found)} in its files, {tuple(expected)} by its config.json"
        )


def _not_loadable(name: str, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:300]
    where = "local" if Path(name).exists() else "not a local folder or file, and not to be had from the Hub"
    return ModelError(f"cannot load the model {name!r} ({where}): {reason}")
