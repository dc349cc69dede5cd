from __future__ import annotations

import importlib.metadata
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tokenclean.errors import ModelError
from tokenclean.models.causal_lm import CausalLM
from tokenclean.models.device import cache_folder
from tokenclean.models.loading.convert import SMOLLM2_PACKAGE, convert_gguf
from tokenclean.models.loading.load import (
    ModelSource,
    load_config,
    load_model,
    load_tokenizer,
    resolve_source,
    source_fingerprint,
)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory, small_model) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    small_model("llama-tied").to(torch.bfloat16).save_pretrained(folder)  # loading must give float32 all the same
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter_folder(base_folder) -> Path:
    torch.manual_seed(7)
    base = load_model(str(base_folder))
    options = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    folder = base_folder.with_name("adapter")
    get_peft_model(base, options).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(base_folder, adapter_folder, tmp_path):
    """Copies of both folders, to be damaged."""
    for folder in (base_folder, adapter_folder):
        shutil.copytree(folder, tmp_path / folder.name)
    return tmp_path


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop_tensor(path: Path) -> str:
    tensors = load_file(path)
    name = sorted(tensors)[-1]
    del tensors[name]
    save_file(tensors, path, {"format": "pt"})
    return name


def test_a_folder_is_loaded_in_float32_and_eval_mode(base_folder):
    model = load_model(str(base_folder))
    assert isinstance(model, LlamaForCausalLM)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(m.training for m in model.modules())
    assert load_config(resolve_source(str(base_folder))).vocab_size == model.config.vocab_size
    assert load_tokenizer(str(base_folder)).get_vocab() == {"<unk>": 0, "a": 1, "b": 2}


def test_an_adapter_stays_unmerged_on_the_base_it_names(base_folder, adapter_folder, pack):
    source = resolve_source(str(adapter_folder))
    assert source == ModelSource(str(base_folder), str(adapter_folder))
    assert str(source) == f"{base_folder} + {adapter_folder}"
    model = load_model(source)
    assert isinstance(model, PeftModel)
    assert not any(m.training for m in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    base = load_model(str(base_folder))
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert not layer.merged
    assert torch.equal(layer.base_layer.weight, base.model.layers[0].self_attn.q_proj.weight)
    with torch.no_grad():
        difference = CausalLM(model).losses(*pack) - CausalLM(base).losses(*pack)
    assert difference.abs().mean() > 1e-2
    assert len(load_tokenizer(source)) == 3


def test_base_replaces_the_base_that_the_adapter_names(copied):
    edit_json(copied / "adapter" / "adapter_config.json", base_model_name_or_path="nobody/such-model")
    source = resolve_source(str(copied / "adapter"), base=str(copied / "base"))
    assert source.base == str(copied / "base")
    assert isinstance(load_model(source), PeftModel)


def test_a_missing_folder_is_refused(tmp_path):
    for name in (str(tmp_path / "nowhere"), "./nowhere", "~/nowhere/at/all", "three/parts/name"):
        with pytest.raises(ModelError, match=r"no such model folder; give a folder, a \.gguf file or a Hub id"):
            resolve_source(name)


def test_a_folder_without_config_and_a_file_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds neither config.json \(a model\) nor adapter_config.json"):
        resolve_source(str(tmp_path))
    (tmp_path / "model.txt").write_text("x")
    with pytest.raises(ModelError, match="no such model folder"):
        resolve_source(str(tmp_path / "model.txt"))


def test_a_hub_id_that_cannot_be_had_is_refused_quickly():
    began = time.monotonic()
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match=r"cannot load the model 'nobody/such-model' \(not a local") as found:
            load("nobody/such-model")
        assert "\n" not in str(found.value)
    with pytest.raises(ModelError, match="cannot load the model 'not an id'"):
        load_model("not an id")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("content", [b"garbage" * 20, b""])
def test_damaged_weights_are_refused(content, copied):
    for folder, file in (("base", "model.safetensors"), ("adapter", "adapter_model.safetensors")):
        (copied / folder / file).write_bytes(content)
        with pytest.raises(ModelError, match="cannot load the model"):
            load_model(resolve_source(str(copied / folder)))


def test_missing_and_misshapen_tensors_are_refused_and_named(copied):
    """Transformers would fill them with random numbers and only log it."""
    missing = drop_tensor(copied / "base" / "model.safetensors")
    with pytest.raises(ModelError, match=f"lack 1 of the model's tensors, such as {missing}"):
        load_model(str(copied / "base"))
    edit_json(copied / "base" / "config.json", intermediate_size=80)
    with pytest.raises(ModelError, match="lack 1 of"):
        load_model(str(copied / "base"))


def test_a_tensor_of_another_shape_is_named(copied):
    edit_json(copied / "base" / "config.json", vocab_size=300)
    with pytest.raises(ModelError, match=r"embed_tokens.weight has shape \(211, 64\) in its files, \(300, 64\)"):
        load_model(str(copied / "base"))


def test_broken_adapters_are_refused(copied):
    folder, base = copied / "adapter", str(copied / "base")
    config = (folder / "adapter_config.json").read_text()

    def load():
        return load_model(resolve_source(str(folder), base=base))

    missing = drop_tensor(folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="missing adapter keys"):
        load()
    assert "lora_" in missing
    for changes, message in (
        ({"r": 16}, "size mismatch"),
        ({"target_modules": ["nothing"]}, "not found in the base model"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps({**json.loads(config), **changes}))
        with pytest.raises(ModelError, match=message):
            load()
    for text in ("{nope", '["a list"]'):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(ModelError, match="not a JSON object, which a configuration must be"):
            load()
    (folder / "adapter_config.json").write_text(json.dumps({**json.loads(config), "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="names no base model; give the base too"):
        resolve_source(str(folder))
    (folder / "adapter_config.json").write_text(config)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot load the model"):
        load()


def test_a_folder_without_fast_tokenizer_is_refused(copied):
    for file in (copied / "base").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="cannot load the model"):
        load_tokenizer(str(copied / "base"))


def test_a_broken_gguf_file_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUFxxxx")
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match=r"cannot load the model '.*model.gguf' \(local\)"):
            load(str(tmp_path / "model.gguf"))
    with pytest.raises(ModelError, match=r"missing.gguf"):
        load_model(str(tmp_path / "missing.gguf"))
    with pytest.raises(ModelError):
        convert_gguf(tmp_path / "model.gguf", tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.gguf"]


def test_the_fingerprint_follows_the_weights(copied):
    base, adapted = (resolve_source(str(copied / name)) for name in ("base", "adapter"))
    adapted = ModelSource(str(copied / "base"), adapted.adapter)
    before = source_fingerprint(base), source_fingerprint(adapted)
    assert before == (source_fingerprint(base), source_fingerprint(adapted))
    assert before[0] != before[1]

    shutil.copytree(copied / "base", copied / "elsewhere")
    assert source_fingerprint(ModelSource(str(copied / "elsewhere"))) == before[0]

    adapter_file = copied / "adapter" / "adapter_model.safetensors"
    save_file({n: t + 1e-3 for n, t in load_file(adapter_file).items()}, adapter_file, {"format": "pt"})
    assert source_fingerprint(base) == before[0]
    assert source_fingerprint(adapted) != before[1]

    changed = source_fingerprint(adapted)
    weights = copied / "base" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert source_fingerprint(base) != before[0]
    assert source_fingerprint(adapted) != changed


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("TOKENCLEAN_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "tokenclean"
    monkeypatch.setenv("TOKENCLEAN_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


@pytest.mark.slow
def test_the_converted_gguf_holds_the_weights_of_a_fresh_load(smollm2_folder, smollm2, smollm2_tokenizer):
    distribution = importlib.metadata.distribution(SMOLLM2_PACKAGE)
    [gguf] = [str(distribution.locate_file(f)) for f in distribution.files or () if f.suffix == ".gguf"]
    source = resolve_source(gguf)
    fresh, converted = load_model(source).state_dict(), smollm2.state_dict()
    assert fresh.keys() == converted.keys()
    for name, tensor in fresh.items():
        assert converted[name].dtype == torch.float32
        assert torch.equal(tensor, converted[name]), name
    text = "Some text,\n  with 3 lines —\n\tand <|im_start|>tags<|im_end|>."
    assert load_tokenizer(source)(text)["input_ids"] == smollm2_tokenizer(text)["input_ids"]
    assert convert_gguf(gguf, smollm2_folder) == smollm2_folder
