"""One load of a base serves it and every adapter on it, each with the very bits it gives when loaded alone."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tokenclean.errors import ModelError
from tokenclean.models.causal_lm import CausalLM
from tokenclean.models.loading import model_cache as resident
from tokenclean.models.loading.load import ModelSource, attach_adapter, load_model
from tokenclean.models.loading.model_cache import ModelCache
from tokenclean.models.precision import PRECISIONS

LINEAR = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}

# kind of adapter -> (family of its base, configuration)
SHARING: dict[str, tuple[str, Callable[[], peft.PeftConfig]]] = {
    "lora": ("llama", lambda: peft.LoraConfig(**LINEAR)),
    "lora on tied embeddings": (
        "llama-tied",
        lambda: peft.LoraConfig(**{**LINEAR, "target_modules": ["embed_tokens", "v_proj"]}),
    ),
    "lora of the output layer": (
        "llama",
        lambda: peft.LoraConfig(**{**LINEAR, "target_modules": ["lm_head", "v_proj"]}),
    ),
    "lora with its own bias": ("llama", lambda: peft.LoraConfig(**LINEAR, lora_bias=True)),
    "lora on Conv1D": ("gpt2", lambda: peft.LoraConfig(**LINEAR)),
    "lora of parameters": (
        "mixtral",
        lambda: peft.LoraConfig(**{**LINEAR, "target_modules": []}, target_parameters=["mlp.experts.gate_up_proj"]),
    ),
    "dora": ("llama", lambda: peft.LoraConfig(**LINEAR, use_dora=True)),
    "modules to save": ("llama", lambda: peft.LoraConfig(**LINEAR, modules_to_save=["lm_head", "norm"])),
    "modules to save of tied weights": (
        "llama-tied",
        lambda: peft.LoraConfig(**LINEAR, modules_to_save=["embed_tokens"]),
    ),
    "trainable tokens": ("llama", lambda: peft.LoraConfig(**LINEAR, trainable_token_indices=[3, 5, 8])),
    "trainable tokens of tied weights": (
        "llama-tied",
        lambda: peft.LoraConfig(**LINEAR, trainable_token_indices=[3, 5, 8]),
    ),
    "tokens alone": ("llama-tied", lambda: peft.TrainableTokensConfig(token_indices=[3, 5, 8])),
    "ia3": ("llama", lambda: peft.IA3Config(init_ia3_weights=False)),
    "loha": ("llama", lambda: peft.LoHaConfig(r=4, target_modules="all-linear", init_weights=False)),
    "oft": ("llama", lambda: peft.OFTConfig(oft_block_size=8, r=0, target_modules="all-linear", init_weights=False)),
    "vera": ("llama", lambda: peft.VeraConfig(r=4, target_modules=["q_proj"], init_weights=False)),
    "layer norms": ("llama", lambda: peft.LNTuningConfig(target_modules=["input_layernorm", "norm"])),
    "adaption prompt": ("llama", lambda: peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2)),
}
CHANGING: dict[str, tuple[str, Callable[[], peft.PeftConfig]]] = {
    "trained biases": ("qwen2", lambda: peft.LoraConfig(**LINEAR, bias="all")),
    "pissa": ("llama", lambda: peft.LoraConfig(**{**LINEAR, "init_lora_weights": "pissa"})),
}


@pytest.fixture(scope="module")
def base_of(tmp_path_factory, small_model) -> Callable[[str], ModelSource]:
    root = tmp_path_factory.mktemp("bases")

    @cache
    def saved(family: str) -> ModelSource:
        small_model(family).save_pretrained(root / family)
        return ModelSource(str(root / family))

    return saved


def save_adapter(base: ModelSource, folder: Path, config: peft.PeftConfig, seed: int = 1) -> ModelSource:
    """An adapter of which every tensor of its own, biases included, differs from what its initialisation gives."""
    config.task_type = "CAUSAL_LM"
    torch.manual_seed(seed)
    model = peft.get_peft_model(load_model(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return ModelSource(base.base, str(folder))


@pytest.fixture(scope="module")
def lora(base_of, tmp_path_factory) -> tuple[ModelSource, ModelSource, ModelSource]:
    """A base with two LoRAs on it."""
    base, root = base_of("llama-tied"), tmp_path_factory.mktemp("adapters")
    return base, *(save_adapter(base, root / str(s), peft.LoraConfig(**LINEAR), seed=s) for s in (1, 2))


class Loads:
    """Notes the loads of weights; ``before`` is called at each, and ``after`` with what it gave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sources: list[ModelSource] = []
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[torch.nn.Module], object] = lambda model: None
        monkeypatch.setattr(resident, "load_model", self._load)

    def _load(self, source: ModelSource, **options):
        self.before()
        self.sources.append(source)
        model = load_model(source, **options)
        self.after(model)
        return model


@pytest.fixture
def loads(monkeypatch) -> Loads:
    return Loads(monkeypatch)


def logits(model: torch.nn.Module, pack) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=pack[0][None, :50]).logits


def losses(scorer: CausalLM, pack, policy: str) -> torch.Tensor:
    with torch.no_grad(), scorer.precision(policy):
        return scorer.measures(*pack, ("loss",))["loss"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:peft")  # its advice on tied weights
@pytest.mark.parametrize("kind", [*SHARING, *CHANGING])
def test_base_and_adapter_in_turn_give_the_bits_they_give_alone(kind, base_of, tmp_path, pack, loads, caplog):
    family, config = {**SHARING, **CHANGING}[kind]
    base = base_of(family)
    adapted = save_adapter(base, tmp_path / "adapter", config())
    alone = {source: load_model(source) for source in (base, adapted)}
    expected = {source: logits(model, pack) for source, model in alone.items()}
    assert not torch.equal(expected[base], expected[adapted])
    parts = [(name, type(module)) for name, module in alone[base].named_modules()]
    models = ModelCache()
    for source in (base, adapted, base, adapted, base):
        with models.using(source) as model:
            assert torch.equal(logits(model, pack), expected[source])
            assert not any(p.requires_grad or p.dtype != torch.float32 for p in model.parameters())
            assert not any(module.training for module in model.modules())
            if source == base:
                assert [(name, type(module)) for name, module in model.named_modules()] == parts
                assert "peft_config" not in vars(model)
    assert ("gets a load of its own" in caplog.text) == (kind in CHANGING)
    assert len(loads.sources) == (5 if kind in CHANGING else 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("policy", PRECISIONS)
@pytest.mark.parametrize("kind", ["lora on Conv1D", "modules to save of tied weights"])
def test_scorers_kept_over_the_switches_give_the_same_bits_under_every_policy(
    policy, kind, base_of, tmp_path, pack, loads
):
    family, config = SHARING[kind]
    base = base_of(family)
    sources = [base, *(save_adapter(base, tmp_path / str(s), config(), seed=s) for s in (1, 2))]
    expected = [losses(CausalLM(load_model(source)), pack, policy) for source in sources]
    models, scorers = ModelCache(), {}
    for source in [*reversed(sources), *sources, base]:
        with models.using(source) as model:
            if source not in scorers:
                scorers[source] = CausalLM(model)
            assert scorers[source].model is model
            assert torch.equal(losses(scorers[source], pack, policy), expected[sources.index(source)])
    assert loads.sources == [base]


@pytest.fixture(scope="module")
def expected(lora, pack) -> list[torch.Tensor]:
    return [logits(load_model(source), pack) for source in lora]


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(turns=st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=2, max_size=5))
def test_no_order_of_use_and_no_failure_leaves_a_trace(turns, lora, expected, pack):
    models, first = ModelCache(), {}
    for number, fails in turns:
        with suppress(KeyboardInterrupt), models.using(lora[number]) as model:
            assert first.setdefault(number, model) is model
            assert torch.equal(logits(model, pack), expected[number])
            if fails:
                raise KeyboardInterrupt


def test_only_one_source_of_a_base_is_in_use_at_a_time(lora, expected, pack):
    base, one, other = lora
    models = ModelCache()
    with models.using(one) as outer:
        for source in (base, other):
            with pytest.raises(RuntimeError, match="is in use; leave that block first"):
                models.using(source).__enter__()
        with models.using(one) as inner:
            assert inner is outer
        assert torch.equal(logits(outer, pack), expected[1])  # which the inner block's end has not taken out
        with pytest.raises(RuntimeError, match="is in use; leave its block"):
            models.clear()
    with models.using(base) as model:
        assert torch.equal(logits(model, pack), expected[0])


def test_a_base_is_unloaded_before_another_is_loaded(base_of, lora, loads):
    llama, tied = base_of("llama"), lora[0]
    models, alive = ModelCache(), {}

    def use(source: ModelSource) -> None:
        with models.using(source) as model:
            alive[source.base] = weakref.ref(model)

    loads.before = lambda: most.append(sum(model() is not None for model in alive.values()))
    most: list[int] = []
    for source in (llama, llama, tied, lora[1], llama):
        use(source)
    assert loads.sources == [llama, tied, llama]
    assert most == [0, 0, 0]
    with models.using(llama), pytest.raises(RuntimeError, match="is in use; leave that block first"):
        models.using(lora[1]).__enter__()
    models.clear()
    assert not any(model() is not None for model in alive.values())


def test_an_adapter_that_changes_its_base_never_makes_two_loads_at_once(base_of, tmp_path, loads):
    family, config = CHANGING["trained biases"]
    base = base_of(family)
    adapted = save_adapter(base, tmp_path / "adapter", config())
    made: list[weakref.ref] = []

    def note(model: torch.nn.Module) -> None:
        made.append(weakref.ref(model))
        vars(model)["circle"] = [model]  # which no count of references ends

    loads.after = note
    loads.before = lambda: alive.append(sum(model() is not None for model in made))
    alive: list[int] = []
    models = ModelCache()
    for source in (adapted, base, adapted, adapted):
        with models.using(source):
            pass
    assert loads.sources == [base, adapted, base, adapted]
    assert alive == [0, 0, 0, 0]


def test_an_adapter_that_removes_a_part_of_its_base_gets_a_load_of_its_own(lora, expected, pack, loads, monkeypatch):
    """Put back, the part would stand last among its fellows."""

    def attach(model, adapter):
        attached = attach_adapter(model, adapter)
        del vars(model)["generation_config"]
        return attached

    monkeypatch.setattr(resident, "attach_adapter", attach)
    models = ModelCache()
    for number in (0, 1, 0):
        with models.using(lora[number]) as model:
            assert torch.equal(logits(model, pack), expected[number])
            assert "generation_config" in vars(model if number == 0 else model.get_base_model())
    assert loads.sources == [lora[0], lora[1], lora[0]]


def test_what_changed_on_disk_is_loaded_anew(lora, pack, tmp_path, loads):
    for number, name in enumerate(("base", "adapter")):
        shutil.copytree((lora[0].base, lora[1].adapter)[number], tmp_path / name)
    base = ModelSource(str(tmp_path / "base"))
    adapted = replace(base, adapter=str(tmp_path / "adapter"))
    models = ModelCache()

    def used(source: ModelSource) -> torch.Tensor:
        with models.using(source) as model:
            result = logits(model, pack)
        assert torch.equal(result, logits(load_model(source), pack))
        return result

    before = used(base), used(adapted)
    add_to(tmp_path / "adapter" / "adapter_model.safetensors", 0.01)
    assert not torch.equal(used(adapted), before[1])
    assert torch.equal(used(base), before[0])
    assert loads.sources == [base]
    add_to(tmp_path / "base" / "model.safetensors", 0.01)
    assert not torch.equal(used(base), before[0])
    used(adapted)
    assert loads.sources == [base, base]


def add_to(path: Path, number: float) -> None:
    save_file({name: tensor + number for name, tensor in load_file(path).items()}, path, {"format": "pt"})


def test_one_folder_under_two_names_is_loaded_once(lora, loads, monkeypatch):
    folder = Path(lora[0].base)
    monkeypatch.chdir(folder.parent)
    models = ModelCache()
    with models.using(lora[0]) as first, models.using(ModelSource(folder.name)) as again:
        assert first is again
    with models.using(replace(lora[1], base=f"./{folder.name}")) as model:
        assert model.get_base_model() is first
    assert loads.sources == [lora[0]]


def test_an_adapter_that_cannot_be_attached_leaves_nothing_behind(lora, expected, pack, tmp_path):
    shutil.copytree(lora[1].adapter, tmp_path / "damaged")
    damaged = replace(lora[1], adapter=str(tmp_path / "damaged"))
    weights = load_file(tmp_path / "damaged" / "adapter_model.safetensors")
    del weights[max(weights)]
    save_file(weights, tmp_path / "damaged" / "adapter_model.safetensors", {"format": "pt"})
    models = ModelCache()
    for _ in range(2):
        with pytest.raises(ModelError, match="missing adapter keys"):
            models.using(damaged).__enter__()
        for source, result in zip(lora, expected, strict=True):
            with models.using(source) as model:
                assert torch.equal(logits(model, pack), result)


@given(
    shape=st.lists(st.integers(0, 5), max_size=3),
    place=st.integers(0, 124),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]),
)
def test_no_change_of_one_element_escapes_the_checksums(shape, place, dtype):
    tensor = torch.ones(shape).to(dtype)
    before = resident._checksums([tensor.clone(), tensor])
    assert before[0] == before[1]
    if tensor.numel():
        tensor.view(-1)[place % tensor.numel()] = 0
        assert resident._checksums([tensor])[0] != before[1]


def test_checksums_reach_beyond_what_is_summed_at_once(monkeypatch):
    monkeypatch.setattr(resident, "_ELEMENTS_AT_ONCE", 4)
    tensor = torch.zeros(11)
    [unchanged] = resident._checksums([tensor])
    assert len(unchanged) == 3
    for place in range(11):
        assert resident._checksums([tensor + torch.eye(11)[place]])[0] != unchanged
