"""The tokenizer for decoding alone decodes as the model's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tokenclean.errors import ModelError
from tokenclean.models.loading.load import load_tokenizer, resolve_source
from tokenclean.models.loading.token_decoder import load_decoder

TEXT = "Grüße, 你好 🤝 <|im_start|>user\n  x = 1\t# ok<|im_end|>"


@pytest.mark.parametrize("folder", ["smollm2_folder", "tiny_model_folder"])
def test_it_decodes_as_the_whole_tokenizer(folder, request):
    path = str(request.getfixturevalue(folder))
    whole, decoder = load_tokenizer(resolve_source(path)), load_decoder(path)
    ids = whole(TEXT, add_special_tokens=False)["input_ids"]
    assert decoder.decode(ids, skip_special_tokens=False) == whole.decode(ids, skip_special_tokens=False)
    assert decoder.get_vocab_size() == len(whole)


def test_tokens_that_the_configuration_adds_are_not_lost(tiny_model_folder: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    tokenizer = load_tokenizer(resolve_source(str(folder)))
    tokenizer.add_tokens(["<added>"])
    tokenizer.save_pretrained(folder)
    new = len(tokenizer) - 1
    file = folder / "tokenizer.json"
    spelled = json.loads(file.read_text(encoding="utf-8"))
    spelled["added_tokens"] = [token for token in spelled["added_tokens"] if token["id"] != new]
    file.write_text(json.dumps(spelled), encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    values = json.loads(settings.read_text(encoding="utf-8"))
    values["added_tokens_decoder"] = {str(new): {"content": "<added>", "special": False}}
    settings.write_text(json.dumps(values), encoding="utf-8")
    assert load_decoder(str(folder)).id_to_token(new) == "<added>"


def test_an_unknown_model_is_an_error(tmp_path):
    with pytest.raises(ModelError):
        load_decoder(str(tmp_path / "none"))


def test_a_folder_with_its_tokenizer_needs_no_torch(tiny_model_folder: Path):
    code = "import sys; from tokenclean.models.loading.token_decoder import load_decoder\n"
    code += f"load_decoder({str(tiny_model_folder)!r})\nassert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
