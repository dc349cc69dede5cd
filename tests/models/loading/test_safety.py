"""Loading a model runs nothing of it: no code of its own unless trusted by name, and no pickle ever."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from tokenclean.errors import ModelError
from tokenclean.models.loading.load import (
    ModelSource,
    load_config,
    load_model,
    load_tokenizer,
    resolve_source,
    source_fingerprint,
)

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({marker!r}).write_text("the model's code ran")
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


class Bomb:
    """Writes ``marker`` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.write_text, (self.marker, "the pickle ran")


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "marker"


@pytest.fixture
def model_folder(tiny_model_folder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


@pytest.fixture
def adapter_folder(model_folder) -> Path:
    options = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    folder = model_folder.with_name("adapter")
    get_peft_model(load_model(str(model_folder)), options).save_pretrained(folder)
    return folder


@pytest.fixture
def coded_folder(model_folder, marker, monkeypatch) -> Path:
    """A model of a type that transformers does not know, with the code for it."""
    modules = str(model_folder.with_name("modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (model_folder / "own_code.py").write_text(CODE.format(marker=str(marker)))
    auto_map = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"}
    edit_json(model_folder / "config.json", model_type="own", auto_map=auto_map)
    return model_folder


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def pickle_weights(path: Path, name: str, marker: Path | None = None) -> None:
    """Replace the only safetensors file of a folder by a pickle; with ``marker``, by one that writes it."""
    [weights] = path.glob("*.safetensors")
    if marker is None:
        torch.save(load_file(weights), path / name)
    else:
        (path / name).write_bytes(pickle.dumps(Bomb(marker)))
    weights.unlink()


def run_as_printed(error: ModelError) -> None:
    command = str(error).splitlines()[-1].strip()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(command, shell=True, check=True, env={**os.environ, "PATH": path}, capture_output=True)


def test_code_of_a_model_runs_only_where_its_name_is_trusted(coded_folder, marker):
    name = str(coded_folder)
    for trusted in ((), ["org/other"], [coded_folder.name], [str(coded_folder.parent)]):
        source = resolve_source(name, trusted=trusted)
        assert source == ModelSource(name, trusted=False)
        for load in (load_model, load_config):
            with pytest.raises(ModelError, match=rf"code of its own .* --trust-remote-code {name} or model.trust_rem"):
                load(source)
    assert not marker.exists()

    source = resolve_source(name, trusted=[name])
    assert source == ModelSource(name, trusted=True)
    assert type(load_model(source)).__name__ == "OwnModel"
    assert marker.read_text() == "the model's code ran"
    assert len(load_tokenizer(source)) == load_config(source).vocab_size


def test_code_is_never_asked_for_at_a_prompt(coded_folder, marker, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("prompted"))
    auto_map = {"AutoTokenizer": [None, "own_code.OwnTokenizer"]}
    edit_json(coded_folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=auto_map)
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match="code of its own"):
            load(str(coded_folder))
    assert not marker.exists()


def test_a_model_that_transformers_knows_loads_without_its_own_code(model_folder, marker):
    (model_folder / "own_code.py").write_text(CODE.format(marker=str(marker)))
    auto_map = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"}
    edit_json(model_folder / "config.json", auto_map=auto_map)
    assert type(load_model(str(model_folder))).__name__ == "LlamaForCausalLM"
    assert not marker.exists()


def test_trust_in_an_adapter_is_trust_in_its_base_by_name(adapter_folder, model_folder):
    adapter, base = str(adapter_folder), str(model_folder)
    assert resolve_source(adapter, trusted=[adapter]) == ModelSource(base, adapter)
    assert resolve_source(adapter, trusted=[base]) == ModelSource(base, adapter, trusted=True)


def test_code_in_another_repository_must_be_named_too(coded_folder):
    name = str(coded_folder)
    auto_map = {"AutoConfig": "org/elsewhere--own_code.OwnConfig", "AutoModel": "org/unused--own_code.Other"}
    edit_json(coded_folder / "config.json", auto_map=auto_map)
    with pytest.raises(ModelError, match=r"is in another repository, org/elsewhere, .*--trust-remote-code org/else"):
        resolve_source(name, trusted=[name])
    assert resolve_source(name, trusted=[name, "org/elsewhere"]).trusted


def test_trusted_code_belongs_to_the_fingerprint(coded_folder):
    plain, trusted = ModelSource(str(coded_folder)), ModelSource(str(coded_folder), trusted=True)
    before = source_fingerprint(plain), source_fingerprint(trusted)
    assert before[0] != before[1]
    (coded_folder / "own_code.py").write_text("changed = True")
    assert source_fingerprint(plain) == before[0]
    assert source_fingerprint(trusted) != before[1]


def test_a_configuration_cannot_name_a_kernel_of_the_hub(model_folder):
    edit_json(model_folder / "config.json", attn_implementation="org/kernel")
    assert load_model(str(model_folder)).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_pickled_weights_are_refused_unread(name, model_folder, marker):
    pickle_weights(model_folder, name, marker)
    with pytest.raises(ModelError, match=rf"pickle files \({name}\), which can run code .*; convert them once"):
        load_model(str(model_folder))
    assert not marker.exists()
    with (model_folder / name).open("rb") as file:
        pickle.load(file)
    assert marker.exists()  # so it would have run


def test_sharded_pickles_are_refused_and_a_trainers_state_is_no_weights(model_folder, marker):
    pickle_weights(model_folder, "pytorch_model-00001-of-00002.bin", marker)
    (model_folder / "pytorch_model.bin.index.json").write_text("{}")
    (model_folder / "optimizer.pt").write_bytes(b"")
    with pytest.raises(ModelError, match=r"pickle files \(pytorch_model-00001-of-00002.bin\)"):
        load_model(str(model_folder))
    (model_folder / "pytorch_model-00001-of-00002.bin").unlink()
    with pytest.raises(ModelError, match=r"no file named model.safetensors"):
        load_model(str(model_folder))
    assert not marker.exists()


def test_safetensors_are_preferred_to_pickles_beside_them(model_folder, adapter_folder, marker):
    (model_folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(marker)))
    (adapter_folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(marker)))
    assert isinstance(load_model(str(adapter_folder)), PeftModel)
    assert not marker.exists()


@pytest.mark.parametrize("bare", [True, False])
def test_a_pickle_called_safetensors_is_not_unpickled(bare, model_folder, adapter_folder, marker):
    for folder in (adapter_folder, model_folder):
        [weights] = folder.glob("*.safetensors")
        if bare:
            weights.write_bytes(pickle.dumps(Bomb(marker)))
        else:
            torch.save({"weight": Bomb(marker)}, weights)
        with pytest.raises(ModelError, match="cannot load the model"):
            load_model(str(folder))
    assert not marker.exists()


@pytest.mark.parametrize(
    "shard", ["pytorch_model.bin", "../model.safetensors", "/model.safetensors", "a\\b.safetensors"]
)
def test_an_index_leads_to_safetensors_beside_it_only(shard, model_folder):
    tensors = load_file(model_folder / "model.safetensors")
    (model_folder / "model.safetensors").rename(model_folder.with_name("model.safetensors"))
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model.safetensors.index.json: .* is in .*, not a .safetensors file beside"):
        load_model(str(model_folder))


def test_sharded_safetensors_load(model_folder):
    expected = load_model(str(model_folder)).state_dict()
    model = load_model(str(model_folder))
    (model_folder / "model.safetensors").unlink()
    model.save_pretrained(model_folder, max_shard_size="40KB")
    assert len(list(model_folder.glob("model-*.safetensors"))) > 1
    loaded = load_model(str(model_folder)).state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in loaded.items())


def test_a_configuration_cannot_name_a_pickle(model_folder, marker):
    pickle_weights(model_folder, "adapter_model.bin", marker)
    edit_json(model_folder / "config.json", transformers_weights="adapter_model.bin")
    with pytest.raises(ModelError, match=r"config.json: transformers_weights is 'adapter_model.bin', not a"):
        load_model(str(model_folder))
    assert not marker.exists()


def test_a_base_that_is_an_adapter_is_refused(model_folder, adapter_folder):
    """Transformers would load the adapter beside a model's weights by itself, from a pickle too."""
    shutil.copy(adapter_folder / "adapter_config.json", model_folder)
    for source in (ModelSource(str(model_folder)), ModelSource(str(adapter_folder))):
        with pytest.raises(ModelError, match=r"adapter_config.json there makes it an adapter"):
            load_model(source)


def test_a_pickled_adapter_is_refused_unread(adapter_folder, marker):
    pickle_weights(adapter_folder, "adapter_model.bin", marker)
    with pytest.raises(ModelError, match=r"adapter: its weights are pickle files \(adapter_model.bin\)"):
        load_model(str(adapter_folder))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "XLORA", "hidden_size": 32, "adapters": {}}, "X-LoRA adapters"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}, "prompt-learning adapters"),
    ],
)
def test_adapters_that_may_read_other_files_are_refused_before_they_are_built(
    changes, message, adapter_folder, model_folder
):
    config = {"task_type": "CAUSAL_LM", "base_model_name_or_path": str(model_folder), **changes}
    (adapter_folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        load_model(str(adapter_folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_the_printed_command_converts_a_model(name, model_folder):
    folder = model_folder.rename(model_folder.with_name("it's a $model"))
    expected = load_model(str(folder)).state_dict()
    pickle_weights(folder, name)
    with pytest.raises(ModelError) as found:
        load_model(str(folder))
    run_as_printed(found.value)
    converted = f"{folder}-safetensors"
    assert not list(Path(converted).glob("*.bin")) + list(Path(converted).glob("*.pt"))
    assert {n: t.tolist() for n, t in load_model(converted).state_dict().items()} == {
        n: t.tolist() for n, t in expected.items()
    }
    assert load_tokenizer(converted).get_vocab() == load_tokenizer(str(folder)).get_vocab()


@pytest.mark.slow
def test_the_printed_command_converts_an_adapter(adapter_folder):
    expected = load_file(adapter_folder / "adapter_model.safetensors")
    pickle_weights(adapter_folder, "adapter_model.bin")
    with pytest.raises(ModelError) as found:
        load_model(str(adapter_folder))
    assert shlex.split(str(found.value).splitlines()[-1])[:2] == ["python", "-c"]
    run_as_printed(found.value)
    converted = f"{adapter_folder}-safetensors"
    assert isinstance(load_model(converted), PeftModel)
    assert sorted(p.suffix for p in Path(converted).iterdir()) == [".json", ".md", ".safetensors"]
    assert load_file(f"{converted}/adapter_model.safetensors").keys() == expected.keys()


def test_a_file_of_many_pickles_gets_no_command(model_folder):
    pickle_weights(model_folder, "consolidated.00.pth")
    shutil.copy(model_folder / "consolidated.00.pth", model_folder / "consolidated.01.pth")
    with pytest.raises(ModelError, match=r"; ask its author for safetensors files$"):
        load_model(str(model_folder))


def test_no_token_stands_in_an_error(model_folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "odd-token-of-a-mirror")
    token = "hf_" + "x" * 30
    edit_json(model_folder / "config.json", model_type=f"{token} odd-token-of-a-mirror")
    with pytest.raises(ModelError) as found:
        load_model(str(model_folder))
    assert "hf_…" in str(found.value)
    assert token not in str(found.value)
    assert "odd-token" not in str(found.value)
