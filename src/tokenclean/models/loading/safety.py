"""No code of a model's author is run unasked, neither from a pickle nor from a Python file.

Weights are read from safetensors files only: unpickling a file can run any code that its author put there. Python code
in a model's repository, which transformers would import and run, is allowed for models trusted by name. A configuration
names such code in its ``auto_map``: a file of its own folder or repository (``modeling.Model``) or of another
repository (``org/name--modeling.Model``).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from tokenclean.errors import ModelError
from tokenclean.models.loading.hub_models import HubOptions, find_file, list_files, read_json

ADAPTER_CONFIG = "adapter_config.json"

_WEIGHTS, _INDEX, _ADAPTER_WEIGHTS = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
_PICKLE = re.compile(r"(pytorch_model[^/]*|adapter_model)\.bin|[^/]+\.(pt|pth|ckpt)")
_TRAINER_STATE = re.compile(r"(optimizer|scheduler|scaler|rng_state)[^/]*")  # of a checkpoint; never read here


_USED_CLASSES = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")


def check_model_weights(name: str, options: HubOptions, *, trusted: bool = False) -> None:
    """Raise ModelError unless every weight file that transformers would read is a safetensors file of the model's own.

    ``options``: from ``hub_options``. Pickled weights are refused with the command that converts them;
    ``trusted`` allows that command to run the model's code.
    """
    config = find_file(name, "config.json", options)
    named = None if config is None else read_json(config).get("transformers_weights")
    if named is not None:  # the configuration may name any file, even adapter_model.bin or an index
        if not _is_own_safetensors(str(named).removesuffix(".index.json")):
            raise ModelError(f"{config}: transformers_weights is {named!r}, not a .safetensors file beside it")
        weights = find_file(name, named, options)
    else:
        weights = find_file(name, _WEIGHTS, options) or find_file(name, _INDEX, options)
    if weights is None:
        _refuse_pickle(name, list_files(name, options), options, trusted=trusted)
    elif weights.name.endswith(".index.json"):
        _check_shards(weights)


def adapter_folder(name: str, options: HubOptions) -> Path:
    """The folder of an adapter's files, fetched if need be; its weights are a safetensors file.

    Peft gets this folder and never a Hub id, for which it would fall back to ``adapter_model.bin``. Raises ModelError
    for pickled weights, with the command that converts them, and where there are none.
    """
    weights = find_file(name, _ADAPTER_WEIGHTS, options)
    if weights is None:
        names = list_files(name, options)
        if "adapter_model.bin" in names:
            raise _refusal(name, ["adapter_model.bin"], _convert_file(name, "adapter_model.bin", options))
        raise ModelError(f"cannot load the model {name!r}: its weights, {_ADAPTER_WEIGHTS}, are missing")
    find_file(name, ADAPTER_CONFIG, options)  # for a Hub id: now both are in one folder
    return weights.parent


def _refuse_pickle(name: str, files: list[str], options: HubOptions, *, trusted: bool) -> None:
    pickles = [f for f in files if _PICKLE.fullmatch(f) and not _TRAINER_STATE.fullmatch(f)]
    if any(f.startswith("pytorch_model") for f in pickles):
        raise _refusal(name, pickles, _convert_model(name, options, trusted=trusted))
    if pickles:
        raise _refusal(name, pickles, _convert_file(name, pickles[0], options) if len(pickles) == 1 else None)
    if not Path(name).is_dir():  # transformers would send the repository to a conversion service
        raise ModelError(f"cannot load the model {name!r}: its repository holds no weights ({_WEIGHTS})")


def _check_shards(index: Path) -> None:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ModelError(f"{index}: has no weight_map that names each tensor's file")
    for tensor, shard in shards.items():
        if not _is_own_safetensors(str(shard)):
            raise ModelError(f"{index}: {tensor} is in {shard!r}, not a .safetensors file beside the index")


def _is_own_safetensors(file: str) -> bool:
    """Whether the name is of a safetensors file in the same folder, which is not a pickle."""
    return file.endswith(".safetensors") and PurePosixPath(file).name == file and "\\" not in file


def _refusal(name: str, pickles: list[str], command: str | None) -> ModelError:
    listed = ", ".join(pickles[:3]) + (", …" if len(pickles) > 3 else "")
    how = "ask its author for safetensors files"
    if command is not None:
        how = f"convert them once (the command reads tensors only), then name {_converted(name)}:\n  {command}"
    return ModelError(f"{name}: its weights are pickle files ({listed}), which can run code when they are read; {how}")


def _convert_model(name: str, options: HubOptions, *, trusted: bool) -> str:
    given = {**_revision(options), **({"trust_remote_code": True} if trusted else {})}
    arguments = "".join(f", {key}={value!r}" for key, value in given.items())
    return _command(
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        f"n, o = {_posix(name)!r}, {_converted(name)!r}; "
        f"M.from_pretrained(n{arguments}).save_pretrained(o); T.from_pretrained(n{arguments}).save_pretrained(o)"
    )


def _convert_file(name: str, pickle: str, options: HubOptions) -> str:
    """The command for one file with a state dict; the other files of its folder are copied."""
    target = _ADAPTER_WEIGHTS if pickle.startswith("adapter_model") else _WEIGHTS
    if Path(name).is_dir():
        folder, copy = _posix(name), f"import shutil; shutil.copytree(n, o, ignore=lambda *_: [{pickle!r}])"
    else:
        revision = "".join(f", {key}={value!r}" for key, value in _revision(options).items())
        folder, copy = name, f"from huggingface_hub import snapshot_download as d; n = d(n{revision}, local_dir=o)"
    return _command(
        f"n, o = {folder!r}, {_converted(name)!r}; {copy}; import torch; from safetensors.torch import save_file; "
        f"w = torch.load(n + '/{pickle}', map_location='cpu', weights_only=True); "
        f"save_file({{k: v.clone().contiguous() for k, v in w.items()}}, o + '/{target}', {{'format': 'pt'}})"
    )


def _converted(name: str) -> str:
    return f"{_posix(name) if Path(name).exists() else name.rpartition('/')[2]}-safetensors"


def _posix(name: str) -> str:
    return Path(name).as_posix() if Path(name).exists() else name


def _revision(options: HubOptions) -> dict[str, str]:
    return {"revision": options["revision"]} if "revision" in options else {}


def _command(code: str) -> str:
    return f'python -c "{code}"' if not set(code) & set('"$`\\!') else shlex.join(["python", "-c", code])


def check_code_is_trusted(name: str, options: HubOptions, trusted: Collection[str]) -> None:
    """Raise ModelError where a trusted model's code is in another repository that is not trusted too."""
    for repository in code_repositories(name, options):
        if repository not in trusted:
            raise untrusted_code(repository, f"{name}: its code is in another repository, {repository}")


def code_repositories(name: str, options: HubOptions) -> list[str]:
    """The other repositories whose code the model's configuration and tokenizer name, sorted."""
    references = (
        reference
        for file in ("config.json", "tokenizer_config.json")
        if (path := find_file(name, file, options)) is not None
        for reference in _references(read_json(path).get("auto_map"))
    )
    return sorted({reference.split("--")[0] for reference in references if "--" in reference} - {name})


def untrusted_code(name: str, what: str | None = None) -> ModelError:
    """The error that says how to trust a model's code, by the model's name."""
    what = what or f"{name}: needs code of its own from its repository"
    return ModelError(
        f"{what}, which is never run unasked; read that code, then name it: --trust-remote-code {name} "
        f"or model.trust_remote_code: [{name}]"
    )


def _references(auto_map: object) -> Iterator[str]:
    """The classes that loading would take from an ``auto_map`` (a list in old tokenizers)."""
    if isinstance(auto_map, dict):
        auto_map = [auto_map.get(name) for name in _USED_CLASSES]
    for value in auto_map if isinstance(auto_map, list) else ():
        yield from (v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str))
