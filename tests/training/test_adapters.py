from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file
from small_llama import all_losses, random_rows

from tokenclean.errors import ModelError
from tokenclean.models.loading.load import load_model, resolve_source
from tokenclean.recipe import LoraSettings
from tokenclean.training.adapters import add_fresh_lora, save_rounds

PROJECTIONS = ("q_proj", "v_proj", "down_proj")
ROUNDS = [(4, 6.0), (2, 16.0), (8, 1.0)]  # rank, alpha
ROWS = random_rows([20, 7, 33])


def lora_settings(rank: int = 4, alpha: float = 6.0, dropout: float = 0.0, targets=PROJECTIONS) -> LoraSettings:
    return LoraSettings(rank=rank, alpha=alpha, dropout=dropout, target_modules=targets)


def live_model(base_folder: Path, earlier: Path | None, settings: LoraSettings, seed: int = 0):
    """Base, earlier rounds and a fresh LoRA that is as if trained (B is no longer 0)."""
    model = add_fresh_lora(load_model(str(base_folder)), settings, earlier)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ("lora_B" in name or "embedding_B" in name):
                parameter.normal_(std=0.05)
    return model.eval()


def plain_peft(base_folder: Path, folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(load_model(str(base_folder)), str(folder)).eval()


def foreign_adapter(base_folder: Path, folder: Path, **options) -> Path:
    """An adapter as peft itself writes it."""
    torch.manual_seed(9)
    options = {"r": 4, "lora_alpha": 10, "target_modules": list(PROJECTIONS), "init_lora_weights": False, **options}
    model = get_peft_model(load_model(str(base_folder)), LoraConfig(task_type=TaskType.CAUSAL_LM, **options))
    model.save_pretrained(folder)
    return folder


def furthest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("targets", [PROJECTIONS, "all-linear"])
def test_the_sum_of_rounds_is_one_plain_adapter(targets, base_folder, tmp_path, hashes_of):
    """After each of three rounds: the live model, its file by plain peft, and float32 weights merged by hand."""
    before = hashes_of(base_folder)
    merged = load_model(str(base_folder))
    weights = dict(merged.named_parameters())
    base_losses = all_losses(merged, ROWS)
    earlier, last, ranks = None, base_losses, 0
    for number, (rank, alpha) in enumerate(ROUNDS, 1):
        live = live_model(base_folder, earlier, lora_settings(rank, alpha, targets=targets), seed=number)
        losses = all_losses(live, ROWS)
        assert furthest(losses, last) > 1e-2
        folder = tmp_path / f"round-{number}"
        save_rounds(live, folder, base=str(base_folder))
        ranks += rank
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (ranks, ranks, 0.0)
        assert config["base_model_name_or_path"] == str(base_folder)
        if targets != "all-linear":
            assert config["target_modules"] == sorted(PROJECTIONS)
        tensors = load_file(folder / "adapter_model.safetensors")
        assert len(tensors) == 2 * 2 * (7 if targets == "all-linear" else len(PROJECTIONS))
        assert {t.dtype for t in tensors.values()} == {torch.float32}

        assert furthest(all_losses(plain_peft(base_folder, folder), ROWS), losses) < 1e-5
        assert furthest(all_losses(load_model(resolve_source(str(folder))), ROWS), losses) < 1e-5
        state = live.state_dict()
        for key in (k for k in state if k.endswith("lora_A.round.weight")):
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.round.weight")
            with torch.no_grad():
                weights[f"{module}.weight"] += alpha / rank * state[key.replace("lora_A", "lora_B")] @ state[key]
        assert furthest(all_losses(merged, ROWS), losses) < 1e-5
        earlier, last = folder, losses
    assert hashes_of(base_folder) == before


@pytest.mark.parametrize("number", [1, 2])
def test_only_the_fresh_lora_is_trainable_and_starts_at_zero(number, base_folder, tmp_path):
    earlier = None
    if number == 2:
        earlier = tmp_path / "first"
        save_rounds(live_model(base_folder, None, lora_settings()), earlier, base=str(base_folder))
    model = add_fresh_lora(load_model(str(base_folder)), lora_settings(rank=3), earlier)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(trainable) == 2 * 2 * len(PROJECTIONS)
    for name, parameter in trainable.items():
        assert ".round." in name
        assert 3 in parameter.shape
        assert parameter.any() == ("lora_A" in name)
    assert any(".earlier_rounds." in n for n, _ in model.named_parameters()) == (number == 2)
    expected = load_model(str(base_folder)) if earlier is None else plain_peft(base_folder, earlier)
    assert torch.equal(all_losses(model.eval(), ROWS), all_losses(expected, ROWS))


@pytest.mark.parametrize("is_foreign", [False, True])
def test_dropout_falls_on_the_fresh_lora_alone(is_foreign, base_folder, tmp_path):
    earlier = tmp_path / "earlier"
    if is_foreign:
        foreign_adapter(base_folder, earlier, lora_dropout=0.5)
    else:
        save_rounds(live_model(base_folder, None, lora_settings(dropout=0.5)), earlier, base=str(base_folder))
    plain = all_losses(plain_peft(base_folder, earlier), ROWS)
    fresh = add_fresh_lora(load_model(str(base_folder)), lora_settings(dropout=0.5), earlier).train()
    assert torch.equal(all_losses(fresh, ROWS), plain)  # B is 0: whatever is dropped of the fresh LoRA does not show
    trained = live_model(base_folder, earlier, lora_settings(dropout=0.5))
    assert furthest(all_losses(trained.train(), ROWS), all_losses(trained.eval(), ROWS)) > 1e-3


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"lora_dropout": 0.3}], ids=str)
def test_an_adapter_with_a_scale_of_its_own_can_be_the_earlier_one(options, base_folder, tmp_path):
    """As a base model that is itself an adapter, made elsewhere."""
    earlier = foreign_adapter(base_folder, tmp_path / "foreign", **options)
    base = load_model(str(base_folder))
    assert furthest(all_losses(plain_peft(base_folder, earlier), ROWS), all_losses(base, ROWS)) > 1e-2
    live = live_model(base_folder, earlier, lora_settings(rank=2, alpha=7))
    save_rounds(live, tmp_path / "sum", base=str(base_folder))
    assert furthest(all_losses(plain_peft(base_folder, tmp_path / "sum"), ROWS), all_losses(live, ROWS)) < 1e-5


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer:UserWarning")
def test_a_lora_on_the_embeddings_is_trained_and_summed_too(base_folder, tmp_path):
    settings = lora_settings(targets=("q_proj", "embed_tokens"))
    earlier = None
    for number in (1, 2):
        live = live_model(base_folder, earlier, settings, seed=number)
        assert sum("embedding" in n for n, p in live.named_parameters() if p.requires_grad) == 2
        folder = tmp_path / str(number)
        save_rounds(live, folder, base=str(base_folder))
        assert furthest(all_losses(plain_peft(base_folder, folder), ROWS), all_losses(live, ROWS)) < 1e-5
        earlier = folder


@pytest.mark.parametrize("targets", [("q_proj",), (*PROJECTIONS, "k_proj"), ("o_proj", "k_proj", "up_proj")])
def test_other_target_modules_in_a_later_round_are_refused_before_training(targets, base_folder, tmp_path):
    save_rounds(live_model(base_folder, None, lora_settings()), tmp_path / "first", base=str(base_folder))
    with pytest.raises(ModelError, match="first: adapts other modules than this round") as found:
        add_fresh_lora(load_model(str(base_folder)), lora_settings(targets=targets), tmp_path / "first")
    assert "keep lora.target_modules as they were" in str(found.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "not as a plain LoRA"),
        ({"modules_to_save": ["norm"]}, "not as a plain LoRA"),
        ({"rank_pattern": {"q_proj": 2}}, "ranks, alphas or biases of single modules"),
        ({"alpha_pattern": {"q_proj": 2}}, "ranks, alphas or biases of single modules"),
        ({"bias": "all"}, "ranks, alphas or biases of single modules"),
    ],
    ids=str,
)
def test_an_earlier_adapter_that_is_no_plain_lora_is_refused(options, message, base_folder, tmp_path):
    foreign_adapter(base_folder, tmp_path / "foreign", **options)
    with pytest.raises(ModelError, match=message):
        add_fresh_lora(load_model(str(base_folder)), lora_settings(), tmp_path / "foreign")


@pytest.mark.parametrize(
    ("targets", "missing"), [(("nothing",), "nothing"), (("q_proj", "qproj", "proj"), "no module qproj, proj that")]
)
def test_target_modules_that_the_model_lacks_are_refused(targets, missing, base_folder):
    with pytest.raises(ModelError, match=missing):
        add_fresh_lora(load_model(str(base_folder)), lora_settings(targets=targets), None)
