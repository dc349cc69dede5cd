"""Loading a causal LM from a Hub id, a folder, a GGUF file, or a PEFT adapter on a base.

Loading runs no foreign code: weights are safetensors or GGUF, never pickles, and a model's own code
runs only where the model was trusted by name (``safety.py``). Hub tokens come from the environment or the Hub's
login, which the libraries read themselves.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenclean.errors import MissingExtraError, ModelError
from tokenclean.hub_reachable import why_unreachable
from tokenclean.models.loading.hub_models import HubOptions, find_file, hub_options, not_loadable, read_json
from tokenclean.models.loading.safety import (
    ADAPTER_CONFIG,
    adapter_folder,
    check_code_is_trusted,
    check_model_weights,
    code_repositories,
    untrusted_code,
)
from tokenclean.store import file_hash, fingerprint

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DEMO_MODEL = "demo"
"""The name that stands for the model of ``tokenclean demo``."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    ``base``: Hub id, folder, or GGUF file (on the Hub as ``org/repo/name.gguf``). ``adapter``: folder or Hub id of a
    PEFT adapter on that base, or None. ``revision``: branch, tag or commit of a Hub id. ``trusted``: the Python code in
    the base's repository may be imported and run.
    """

    base: str
    adapter: str | None = None
    revision: str | None = None
    trusted: bool = False

    def __str__(self) -> str:
        return f"{self.base} + {self.adapter}" if self.adapter else self.base

    @property
    def absolute(self) -> ModelSource:
        """The same source with absolute local paths."""
        base, adapter = (str(Path(n).resolve()) if n and Path(n).exists() else n for n in (self.base, self.adapter))
        return replace(self, base=base, adapter=adapter)


def resolve_source(
    name: str, *, base: str | None = None, revision: str | None = None, trusted: Collection[str] = ()
) -> ModelSource:
    """The source of a full model, or of an adapter, whose ``adapter_config.json`` also names its base.

    ``demo`` is the demo's model, SmolLM2-135M-Instruct from a package. ``base`` replaces the base that the adapter
    names (say, by a local copy), which may be a Hub id or a path: somebody else's adapter chooses which base is loaded,
    but none of its code runs. ``trusted``: names of the models whose code may run; for an adapter that is its base.

    Raises ModelError for a local path that does not exist or is not a model, for a Hub id that cannot be loaded, and
    where the code of a trusted model is in another repository that is not trusted too.
    """
    if name == DEMO_MODEL and not Path(name).exists():
        from tokenclean.models.loading.convert import smollm2_folder

        name = str(smollm2_folder())
    path = Path(name).expanduser()
    if name.endswith(".gguf"):  # which holds no code
        return ModelSource(str(path) if path.is_file() else name, None, revision)
    given = name
    if path.is_dir():
        name = str(path)
    elif path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{name}: no such model folder; give a folder, a .gguf file or a Hub id such as org/name")
    options = hub_options(name, revision)
    adapter_config = find_file(name, ADAPTER_CONFIG, options)
    if adapter_config is None:
        if find_file(name, "config.json", options) is None:
            raise _no_model(name, options)
        source = ModelSource(name, None, revision, trusted=given in trusted or name in trusted)
    else:
        written = read_json(adapter_config)
        named = base or written.get("base_model_name_or_path")
        if not named:
            raise ModelError(f"{name}: its {ADAPTER_CONFIG} names no base model; give the base too")
        source = ModelSource(named, name, None if base is None else revision, trusted=named in trusted)
    if source.trusted:
        check_code_is_trusted(source.base, hub_options(source.base, source.revision), trusted)
    return source


def has_plain_lora(source: ModelSource) -> bool:
    """Whether the source's adapter is a LoRA that leaves its base as it is, by its configuration: low-rank changes of
    linear layers and nothing else."""
    assert source.adapter is not None
    config = find_file(source.adapter, ADAPTER_CONFIG, hub_options(source.adapter, source.revision))
    written = {} if config is None else read_json(config)
    others = ("use_dora", "use_qalora", "modules_to_save", "trainable_token_indices", "target_parameters", "lora_bias")
    others += ("layer_replication",)
    is_plain = written.get("bias", "none") == "none" and not any(written.get(name) for name in others)
    return (
        is_plain
        and written.get("peft_type") == "LORA"
        and written.get("init_lora_weights", True) in (True, False, "gaussian")
    )


def load_model(source: ModelSource | str, *, device: str | torch.device = "cpu") -> PreTrainedModel:
    """Load in float32 and eval mode; an adapter stays unmerged (merging rounds its delta away in low precision).

    Returns a transformers causal LM, or the PEFT model around one. Raises ModelError naming what could not be loaded
    (even a single tensor that the files lack, for which transformers would use random numbers), for pickled weights and
    for untrusted code of the model's own.
    """
    import torch
    from transformers import AutoModelForCausalLM

    source = resolve_source(source) if isinstance(source, str) else source
    name, gguf = _split_gguf(source.base)
    where, options = hub_options(name, source.revision), {}
    if find_file(name, ADAPTER_CONFIG, where) is not None:  # transformers would load it silently, or another base
        raise ModelError(f"{source.base}: a base is needed, but {ADAPTER_CONFIG} there makes it an adapter; merge it")
    if "local_files_only" in where:  # transformers looks for an adapter without passing it on
        options["adapter_kwargs"] = {"local_files_only": True}
    if gguf is not None:
        options["quantization_config"] = _gguf_config()
    else:
        check_model_weights(name, where, trusted=source.trusted)
        options["use_safetensors"] = True
    if not source.trusted:  # a configuration may name an attention kernel on the Hub, which is code; None: the default
        options["attn_implementation"] = None
    options |= {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, report = _from_pretrained(AutoModelForCausalLM, source, options)
    _check_complete(source.base, report)
    if source.adapter is not None:
        model = attach_adapter(model, source.adapter)
    return model.to(device).eval()


def load_tokenizer(source: ModelSource | str) -> PreTrainedTokenizerBase:
    """The base's fast tokenizer. Raises ModelError where there is none."""
    from transformers import AutoTokenizer

    source = resolve_source(source) if isinstance(source, str) else source
    tokenizer = _from_pretrained(AutoTokenizer, source, {})
    if not tokenizer.is_fast:
        raise ModelError(f"{source.base}: has only a slow tokenizer, which gives no character offsets (tokenizer.json)")
    return tokenizer


def load_config(source: ModelSource) -> PreTrainedConfig:
    """The base's configuration, without its weights. Raises ModelError."""
    from transformers import AutoConfig

    return _from_pretrained(AutoConfig, source, {})


def source_fingerprint(source: ModelSource) -> str:
    """Hash that identifies the weights: file hashes of local files, the name and resolved commit of a Hub id.

    Covers the code of a trusted model too.
    """
    identity = [_identity(source.base, source.revision), source.adapter and _identity(source.adapter, None)]
    if source.trusted:
        folder = Path(source.base)  # of no files for a Hub id, whose commit is in its identity
        code = [[p.relative_to(folder).as_posix(), file_hash(p)] for p in sorted(folder.rglob("*.py"))]
        others = code_repositories(source.base, hub_options(source.base, source.revision))
        identity.append([code, [_identity(name, None) for name in others]])
    return fingerprint(identity)


def check_two_models(base: str, reference: str) -> None:
    """Raise ModelError where base and reference have the same fingerprint: every score would be 0."""
    if base == reference:
        raise ModelError(
            "the reference is the base itself, so every score would be 0; expected a model that was trained further, "
            "such as an adapter on the base"
        )


def adapter_fingerprint(adapter: str) -> str:
    """Hash of an adapter's own files, without its base: file hashes of a folder, name and commit of a Hub id."""
    return fingerprint(_identity(adapter, None))


def _identity(name: str, revision: str | None) -> object:
    path = Path(name)
    if path.is_file():
        return [file_hash(path)]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".json", ".jinja"))
        return [[p.name, file_hash(p)] for p in files]
    repository, gguf = _split_gguf(name)
    where = hub_options(repository, revision)
    files = (find_file(repository, file, where) for file in ([gguf] if gguf else ["config.json", ADAPTER_CONFIG]))
    file = next((file for file in files if file is not None), None)
    return [name, revision, None if file is None else file.parent.name]  # in the cache: snapshots/<commit>/config.json


def _from_pretrained(auto: Any, source: ModelSource, options: dict[str, Any]) -> Any:
    """What ``from_pretrained`` of a class of transformers gives for the base. Raises ModelError."""
    name, gguf = _split_gguf(source.base)
    options = {**options, **hub_options(name, source.revision)}
    options["trust_remote_code"] = source.trusted  # never None, at which transformers would prompt
    if gguf is not None:
        options["gguf_file"] = gguf
    try:
        return auto.from_pretrained(name, **options)
    except Exception as error:  # a damaged file's reader may raise anything (SafetensorError, struct.error)
        if not source.trusted and isinstance(error, ValueError) and "trust_remote_code=True" in str(error):
            raise untrusted_code(source.base) from error
        raise not_loadable(source.base, error) from error


def _split_gguf(base: str) -> tuple[str, str | None]:
    """Folder or Hub id, and the GGUF file in it, or None."""
    if not base.endswith(".gguf"):
        return base, None
    folder, _, file = base.replace("\\", "/").rpartition("/")
    return folder or ".", file


def _gguf_config() -> object:
    try:
        import gguf  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError("gguf", "gguf", "reading a GGUF file") from error
    from transformers import GgufConfig

    return GgufConfig(dequantize=True)  # without it, saving and casting the model raise


def attach_adapter(model: PreTrainedModel, adapter: str) -> Any:
    """The ``PeftModel`` around ``model``, with the adapter unmerged. Replaces modules of ``model`` itself.

    ``adapter``: folder or Hub id. Adapters hold no code; a pickle or a further adapter that the configuration may name
    is refused first. Raises MissingExtraError without peft, ModelError for an adapter that cannot be loaded, is
    incomplete, or adds positions (prompt learning).
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise MissingExtraError("peft", "train", "loading an adapter") from error
    folder = adapter_folder(adapter, hub_options(adapter, None))
    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
    except Exception as error:
        raise not_loadable(adapter, error) from error
    if config.is_prompt_learning:  # it may also name a pickle anywhere
        raise ModelError(
            f"{adapter}: prompt-learning adapters add positions and cannot be scored; use LoRA or the like"
        )
    if config.peft_type == "XLORA":
        raise ModelError(f"{adapter}: X-LoRA adapters need further adapters and cannot be scored; use LoRA")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(model, str(folder), is_trainable=False, config=config)
    except Exception as error:
        raise not_loadable(adapter, error) from error


def _check_complete(name: str, report: dict[str, Any]) -> None:
    if report["missing_keys"]:
        tensors = sorted(report["missing_keys"])
        raise ModelError(f"{name}: its files lack {len(tensors)} of the model's tensors, such as {tensors[0]}")
    if report["mismatched_keys"]:
        tensor, found, expected = min(report["mismatched_keys"])
        raise ModelError(
            f"{name}: {tensor} has shape {tuple(found)} in its files, {tuple(expected)} by its config.json"
        )


def _no_model(name: str, options: HubOptions) -> ModelError:
    if "local_files_only" in options and (reason := why_unreachable()):
        return not_loadable(name, f"{reason}, and the cache does not hold it; connect, or name a folder")
    return ModelError(f"{name}: holds neither config.json (a model) nor {ADAPTER_CONFIG} (an adapter)")
