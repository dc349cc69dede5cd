from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tokenclean.errors import RecipeError
from tokenclean.recipe import PRESETS, STRATEGIES, Recipe, TrainingSettings, load_recipe, recipe_from, training_from
from tokenclean.report.published_tables import published_row

REQUIRED = ("pool.sources.0.path=pool.jsonl", "model.base=org/model")
SMALL = {"pool": {"sources": [{"path": "pool.jsonl"}]}, "model": {"base": "org/model"}}


def with_overrides(*overrides: str) -> Recipe:
    return recipe_from(SMALL, overrides)


def problems_of(*overrides: str, values: Any = None) -> list[str]:
    with pytest.raises(RecipeError) as found:
        recipe_from(SMALL if values is None else values, overrides)
    return found.value.problems


def problem_of(*overrides: str) -> str:
    [problem] = problems_of(*overrides)
    return problem


# --- presets and files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_loads_once_pool_and_model_are_named(preset):
    recipe = load_recipe(preset, REQUIRED)
    assert recipe.name == preset
    assert recipe.folder == Path("runs") / preset
    with pytest.raises(RecipeError) as found:
        load_recipe(preset)
    assert len(found.value.problems) == 2
    assert f"preset {preset}: 2 problems" in str(found.value)
    assert "model: missing; set it in the file or with --set model=…" in found.value.problems


def test_the_paper_preset_is_the_paper():
    """§6.1 and §10.3."""
    recipe = load_recipe("paper", REQUIRED)
    assert recipe.seed == 42
    assert (recipe.tokens.template, recipe.tokens.max_length) == ("tulu", 2048)
    cleaning = recipe.cleaning
    assert (cleaning.strategy, cleaning.proportion, cleaning.level) == ("self_evolving", 0.6, "global")
    assert (cleaning.splits, cleaning.split_kind, cleaning.score_against) == (5, "contiguous", "base")
    assert (cleaning.stop_when, cleaning.adapters) == ("never", "fresh")
    assert recipe.model.reference is None
    training = recipe.training
    assert training.method == "lora"
    assert (training.lora.rank, training.lora.alpha, training.lora.dropout) == (64, 16, 0.1)
    assert training.lora.target_modules == (
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    )
    assert (training.learning_rate, training.schedule, training.warmup_ratio) == (1e-4, "linear", 0.03)
    assert (training.weight_decay, training.max_grad_norm) == (0, 0)
    assert (training.epochs, training.batch_size, training.minimum_steps) == (1, 48, 0)
    assert training.shuffle is False
    assert training.loss_normalisation == "token"
    assert training.eval_rows == 0


@pytest.mark.parametrize("name", ["paper", "quick"])
def test_the_recipes_beside_the_source_load(name):
    path = Path(__file__).parents[1] / "recipes" / f"{name}.yaml"
    recipe = load_recipe(path)
    preset = load_recipe(
        name, [f"pool.sources.0.path={recipe.pool.sources[0].path}", f"model.base={recipe.model.base}"]
    )
    assert recipe.training == preset.training
    assert recipe.cleaning == preset.cleaning
    if name == "paper":
        without_ratings_and_ours = {"ds2", "noise_mixture", "repetition", "influence", "mismatch", "given", "auto"}
        assert set(recipe.strategies) == set(STRATEGIES) - without_ratings_and_ours
    else:  # with the control that the table of rounds needs
        assert recipe.strategies == ("none", "full_tokens", "full_tokens_from_warmup", "self_evolving")


WITHOUT_FILES = [name for name in STRATEGIES if name not in ("ds2", "influence", "given")]

OTHER_MODELS = {
    "paper-llama-3.1-8b": "meta-llama/Llama-3.1-8B",
    "paper-mistral-7b-v0.3": "mistralai/Mistral-7B-v0.3",
}


def test_the_recipe_for_gpus_is_the_papers_but_for_how_it_computes():
    recipe, paper = (load_recipe(Path(__file__).parents[1] / "recipes" / f"{name}.yaml") for name in ("gpus", "paper"))
    computes = {"precision", "pack_tokens", "sharding", "activation_checkpointing", "checkpoint_minutes"}
    assert recipe.training.model_dump(exclude=computes) == paper.training.model_dump(exclude=computes)
    assert recipe.cleaning == paper.cleaning
    assert recipe.tokens == paper.tokens


def test_every_recipe_file_is_tested():
    names = sorted(path.name for path in (Path(__file__).parents[1] / "recipes").iterdir())
    others = [*OTHER_MODELS, "alpaca-ds2", "five-sources", "gpus", "paper", "quick"]
    assert names == sorted(f"{name}.yaml" for name in others)


def test_the_recipe_for_ds2_warms_up_on_the_best_rated_rows():
    recipe = load_recipe(Path(__file__).parents[1] / "recipes" / "alpaca-ds2.yaml")
    assert (recipe.cleaning.warmup, recipe.cleaning.ds2_rows) == ("ds2", 10_000)
    assert [rating.scale for rating in recipe.pool.curation.ratings] == ["classes"] * 3
    assert "ds2" in recipe.strategies


def test_the_recipe_of_five_sources_names_the_papers_counts():
    recipe = load_recipe(Path(__file__).parents[1] / "recipes" / "five-sources.yaml")
    assert sum(source.count for source in recipe.pool.sources) == 50_000


@pytest.mark.parametrize(("name", "base"), OTHER_MODELS.items())
def test_the_paper_s_other_models_differ_in_the_model_alone(name, base):
    recipe, paper = (load_recipe(Path(__file__).parents[1] / "recipes" / f"{n}.yaml") for n in (name, "paper"))
    assert recipe.model_copy(update={"name": paper.name, "model": paper.model}) == paper
    assert recipe.model.base == base
    assert published_row(base, "self_evolving") is not None


def test_a_file_goes_over_its_preset_and_an_override_over_both(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "preset": "paper", "training": {"epochs": 3, "lora": {"rank": 8}}}))
    recipe = load_recipe(str(file), ["training.lora.rank=4"])
    assert (recipe.training.epochs, recipe.training.lora.rank, recipe.training.lora.alpha) == (3, 4, 16)
    assert recipe.training.batch_size == 48
    assert recipe.cleaning.split_kind == "contiguous"


def test_a_file_that_is_called_like_a_preset_comes_first(tmp_path, monkeypatch):
    (tmp_path / "paper").write_text(yaml.safe_dump({**SMALL, "name": "mine"}))
    monkeypatch.chdir(tmp_path)
    assert load_recipe("paper").name == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"pool: [1", "not valid YAML: while parsing a flow sequence"),
        (b"name: 2020-13-01", "not valid YAML: month must be in 1..12"),
        (b"- a\n- b", r"a recipe is a mapping of sections \(pool, model, cleaning, …\)"),
        (b"", "a recipe is a mapping"),
        (b"just text", "a recipe is a mapping"),
        (b"name: \xff\xfe", "cannot be read as UTF-8 text"),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_file(content, message, tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=message) as found:
        load_recipe(file)
    assert str(found.value).startswith(f"{file}: ")
    assert "\n" not in str(found.value)


def test_a_missing_file_is_refused_and_the_presets_named(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path, "papr"):
        with pytest.raises(RecipeError, match="no such recipe file; the presets are paper, quick, demo"):
            load_recipe(path)


def test_an_unknown_preset_is_named_beside_the_other_faults():
    problems = problems_of("training.epochs=0", values={**SMALL, "preset": "papr"})
    assert problems == [
        "preset: unknown preset 'papr'; did you mean paper?",
        "training.epochs: input should be greater than or equal to 1, found 0",
    ]
    assert len(problems_of(values={**SMALL, "preset": ["paper"]})) == 1


# --- overrides ---------------------------------------------------------------------------------------------------


def test_overrides_reach_sections_and_list_items():
    recipe = with_overrides(
        "training.lora.rank=8",
        "pool.sources.0.format=alpaca",
        "pool.sources.1.path=second.jsonl",
        "pool.sources.2.path=third.jsonl",
        "pool.sources.1.name=two",
        "evaluation.controls=[rho, none]",
        "evaluation.controls.2=random",
        "training.lora.target_modules.0=q_proj",
    )
    assert recipe.training.lora.rank == 8
    assert [(s.path, s.name, s.format) for s in recipe.pool.sources] == [
        ("pool.jsonl", None, "alpaca"),
        ("second.jsonl", "two", "auto"),
        ("third.jsonl", None, "auto"),
    ]
    assert recipe.evaluation.controls == ("rho", "none", "random")
    assert recipe.training.lora.target_modules == ("q_proj",)


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("training.learning_rate=1e-4", "learning_rate", 1e-4),  # a string in YAML 1.1
        ("training.learning_rate=2.5E-3", "learning_rate", 2.5e-3),
        ("training.learning_rate=1", "learning_rate", 1.0),
        ("training.shuffle=false", "shuffle", False),
        ("training.epochs=0x10", "epochs", 16),
        ("training.schedule='cosine'", "schedule", "cosine"),
        ("training={epochs: 2}", "epochs", 2),
    ],
)
def test_values_are_yaml(override, key, expected):
    found = getattr(with_overrides(override).training, key)
    assert found == expected
    assert type(found) is type(expected)


def test_a_value_may_hold_an_equals_sign_and_may_be_empty():
    assert with_overrides("model.base=a=b").model.base == "a=b"
    values = {**SMALL, "model": {"base": "x", "revision": "main"}}
    assert recipe_from(values, ["model.revision="]).model.revision is None


def test_the_last_override_wins_and_the_values_given_stay_as_they_were():
    values = {**SMALL, "evaluation": {"controls": ("none",)}}
    before = repr(values)
    recipe = recipe_from(values, ["training.epochs=2", "training.epochs=3", "evaluation.controls.1=rho"])
    assert recipe.training.epochs == 3
    assert recipe.evaluation.controls == ("none", "rho")
    assert repr(values) == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "--set training.epochs: expected key=value, such as training.epochs=2"),
        ("=2", "--set =2: expected key=value, such as training.epochs=2"),
        ("model.base=[1", "--set model.base=[1: the value is not valid YAML"),
        ("name=2020-13-01", "--set name=2020-13-01: the value is not valid YAML"),
        ("pool.sources.2.path=x", "--set pool.sources.2: this is a list of 1; give an index from 0 to 1"),
        ("pool.sources.-1.path=x", "--set pool.sources.-1: this is a list of 1; give an index from 0 to 1"),
        ("pool.sources.².path=x", "--set pool.sources.²: this is a list of 1; give an index from 0 to 1"),
        ("pool.sources.path=x", "--set pool.sources.path: this is a list of 1; give an index from 0 to 1"),
        ("model.base.name=x", "--set model.base.name: model.base is a value, not a section"),
        ("trainng.epochs=2", "trainng: unknown key; did you mean training?"),
        ("training.epoch=2", "training.epoch: unknown key; did you mean epochs?"),
        ("training.=2", "training.: unknown key"),
        ("cleaning.stop_wen=never", "cleaning.stop_wen: unknown key; did you mean stop_when?"),
        ("stop_when=never", "stop_when: unknown key; did you mean cleaning.stop_when?"),
        (
            "cleaning.stop_when=held_out_loss_rise",
            "cleaning.stop_when: expected one of never, held_out_loss_rises, found 'held_out_loss_rise'; "
            "did you mean held_out_loss_rises?",
        ),
    ],
)
def test_a_bad_override_is_refused(override, message):
    assert problem_of(override) == message


# --- faults ------------------------------------------------------------------------------------------------------


def test_every_fault_is_reported_at_once():
    problems = problems_of(
        "no-equals",
        values={
            "pool": {"sources": [{"pth": "x"}]},
            "training": {"epoch": 1, "schedule": "liner", "batch_size": 0},
            "precision": "fast",
            "cleaning": {"strategy": "self-evolving", "proportion": 1.5},
            "seed": "abc",
        },
    )
    assert problems == [
        "--set no-equals: expected key=value, such as training.epochs=2",
        "seed: input should be a valid integer, unable to parse string as an integer, found 'abc'",
        "pool.sources.0.pth: unknown key; did you mean path?",
        "model: missing; set it in the file or with --set model=…",
        "cleaning.strategy: expected one of none, ds2, full_tokens, full_tokens_from_warmup, random, rho, fixed_model, "
        "self_evolving, noise_mixture, repetition, influence, mismatch, given, auto, or module:function of your own, "
        "found 'self-evolving'; did you mean self_evolving?",
        "cleaning.proportion: expected a number greater than 0 and at most 1, or auto, found 1.5",
        "training.batch_size: input should be greater than or equal to 1, found 0",
        "training.schedule: expected one of linear, cosine, constant_with_warmup, found 'liner'; did you mean linear?",
        "training.epoch: unknown key; did you mean epochs?",
        "precision: unknown key; did you mean scoring.precision or training.precision?",
    ]


def test_one_fault_is_one_line_and_several_are_a_list():
    assert str(RecipeError("one", "file")) == "file: one"
    assert str(RecipeError(["one", "two"], "file")) == "file: 2 problems\n  - one\n  - two"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("batch_size", "training.batch_size"),
        ("tokens.max_rows", "pool.max_rows"),
        ("training.splits", "cleaning.splits"),
        ("rank", "training.lora.rank"),
        ("training.alpha", "training.lora.alpha"),
        ("cleaning.precision", "scoring.precision or training.precision"),  # not: proportion
        ("pool.max_share", "pool.heldout.max_share"),
        ("pool.sources.0.pth", "path"),
        ("training.lora.drop_out", "dropout"),
    ],
)
def test_an_unknown_key_gets_the_likeliest_known_one(key, hint):
    assert problem_of(f"{key}=1") == f"{key}: unknown key; did you mean {hint}?"


def test_a_key_like_no_other_gets_no_hint():
    assert problem_of("zzzzzz=1") == "zzzzzz: unknown key"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cleaning.proportion=0", "greater than 0"),
        ("cleaning.splits=1", "greater than or equal to 2"),
        ("pool.max_rows=3", "greater than or equal to 4"),
        ("pool.heldout.max_share=1", "less than 1"),
        ("tokens.max_length=1", "greater than or equal to 2"),
        ("seed=-1", "greater than or equal to 0"),
        ("seed=4294967296", "less than 4294967296"),  # numpy's generators, which transformers seeds too, take no more
        ("training.learning_rate=0", "greater than 0"),
        ("training.learning_rate=.nan", "finite number"),
        ("training.lora.alpha=.inf", "finite number"),
        ("training.weight_decay=.nan", "finite number"),
        ("training.warmup_ratio=1", "less than 1"),
        ("training.lora.dropout=1", "less than 1"),
        ("training.max_grad_norm=-1", "greater than or equal to 0"),
        ("training.epochs=1.5", "valid integer"),
        ("training.shuffle=perhaps", "valid boolean"),
        ("pool.sources=[]", "at least 1 item"),
        ("pool.sources.0=pool.jsonl", "valid dictionary"),
        ("training=", "valid dictionary"),
        ("model.base=''", "at least 1 character"),
        ("name=a/b", "match pattern"),
        ("name=..", "match pattern"),  # the run folder would be the parent of ``output``
    ],
)
def test_a_value_out_of_range_is_refused(override, message):
    problem = problem_of(override)
    key = override.partition("=")[0]
    assert problem.startswith(f"{key}: ")
    assert message in problem


@pytest.mark.parametrize("value", ["q_proj", "all_linear", "[]", "[1]", "3", ""])
def test_target_modules_are_all_linear_or_a_list_of_names(value):
    problem = problem_of(f"training.lora.target_modules={value}")
    assert problem == (
        "training.lora.target_modules: expected all-linear or a list of module names such as [q_proj, v_proj], "
        f"found {yaml.safe_load(value)!r}"
    )


def test_a_reference_for_self_evolving_alone_is_refused():
    assert "self_evolving trains its own references" in problem_of("model.reference=other")
    recipe = with_overrides("model.reference=other", "evaluation.controls=[rho]")
    assert recipe.model.reference == "other"
    assert with_overrides("model.reference=other", "cleaning.strategy=fixed_model").model.reference == "other"


def test_one_adapter_through_all_rounds_is_refused_where_there_is_no_adapter():
    assert with_overrides("cleaning.adapters=one").cleaning.adapters == "one"
    assert with_overrides("training.method=full").cleaning.adapters == "fresh"
    assert problem_of("cleaning.adapters=one", "training.method=full") == (
        "cleaning.adapters: one trains one LoRA through all rounds, but training.method: full has none; "
        "use method: lora, or adapters: fresh"
    )
    assert problem_of("cleaning.adapters=same") == "cleaning.adapters: expected one of fresh, one, found 'same'"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.method=full", "method: full freezes nothing; use lora, or quantization: none"),
        ("training.sharding=fsdp2", "sharding: fsdp2 parts; use sharding: none, or quantization: none"),
    ],
)
def test_a_quantized_base_is_refused_where_nothing_is_frozen_or_layers_are_parted(override, message):
    assert with_overrides(override).training.quantization == "none"
    problem = problem_of("training.quantization=nf4", override)
    assert problem.startswith("training: quantization: nf4 ")
    assert problem.endswith(message)
    assert "expected one of none, nf4, found 'fp4'" in problem_of("training.quantization=fp4")


def test_training_settings_alone():
    assert training_from({}) == TrainingSettings()
    assert training_from({"epochs": 2, "lora": {"rank": 3}}).lora.rank == 3
    with pytest.raises(RecipeError, match="training: 2 problems") as found:
        training_from({"epochs": 0, "method": "loar"})
    assert found.value.problems[0] == "method: expected one of lora, full, found 'loar'; did you mean lora?"


# --- the object --------------------------------------------------------------------------------------------------


def test_a_recipe_is_frozen():
    recipe = with_overrides()
    for section, key in ((recipe, "seed"), (recipe.training, "epochs"), (recipe.pool.sources[0], "path")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, 1)
    assert hash(recipe) == hash(with_overrides())


def test_strategies_are_the_strategy_and_its_controls_each_once_in_one_order():
    assert with_overrides().strategies == ("self_evolving",)
    recipe = with_overrides("cleaning.strategy=rho", "evaluation.controls=[self_evolving, none, rho, none]")
    assert recipe.strategies == ("none", "rho", "self_evolving")


def test_the_output_may_start_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert with_overrides("output=~/runs", "name=a.b").folder == Path("/home/someone/runs/a.b")
    assert "output: '~nobody-here/runs'" in problem_of("output=~nobody-here/runs")


def test_a_date_needs_no_quotes():
    assert with_overrides("tokens.date=2020-02-29").tokens.date == "2020-02-29"
    assert with_overrides("tokens.date='2020-02-29'").tokens.date == "2020-02-29"
    assert "tokens.date" in problem_of("tokens.date=soon")
    assert "tokens.date" in problem_of("tokens.date=3")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
SHARES = st.floats(0, 1, exclude_min=True, exclude_max=True)


def section(**keys: st.SearchStrategy) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


RECIPES = st.fixed_dictionaries(
    {
        "pool": st.fixed_dictionaries(
            {
                "sources": st.lists(
                    st.fixed_dictionaries({"path": TEXT}, optional={"name": TEXT | st.none()}), min_size=1, max_size=3
                )
            },
            optional={"max_rows": st.none() | st.integers(4, 10**12), "heldout": section(max_share=SHARES)},
        ),
        "model": st.fixed_dictionaries({"base": TEXT}, optional={"revision": st.none() | TEXT}),
    },
    optional={
        "name": st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,8}", fullmatch=True),
        "seed": st.integers(0, 2**32 - 1),
        "cleaning": section(strategy=st.sampled_from(WITHOUT_FILES), proportion=SHARES, splits=st.integers(2, 9)),
        "training": section(
            learning_rate=st.floats(0, exclude_min=True, allow_infinity=False),
            weight_decay=st.floats(0, allow_infinity=False),
            shuffle=st.booleans(),
            lora=section(
                alpha=st.floats(0, exclude_min=True, allow_infinity=False),
                target_modules=st.just("all-linear") | st.lists(TEXT, min_size=1, max_size=3),
            ),
        ),
        "evaluation": section(controls=st.lists(st.sampled_from(WITHOUT_FILES), max_size=4)),
    },
)


@given(values=RECIPES)
def test_a_recipe_written_out_is_read_back_the_same(values, tmp_path_factory):
    recipe = recipe_from(values)
    file = tmp_path_factory.getbasetemp() / "written.yaml"
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(file) == recipe


def test_every_value_is_spelled_out():
    written = yaml.safe_load(with_overrides().to_yaml())
    assert list(written) == list(Recipe.model_fields)
    for name, value in written.items():
        if isinstance(value, dict):
            assert list(value) == list(type(getattr(with_overrides(), name)).model_fields)


def test_a_proportion_that_is_chosen_needs_a_strategy_that_ranks():
    values = {"pool": {"sources": [{"path": "a.jsonl"}]}, "model": {"base": "org/base"}}

    def recipe(**cleaning: object) -> Recipe:
        return recipe_from({**values, "cleaning": {"proportion": "auto", **cleaning}})

    chosen = recipe(strategy="fixed_model")
    assert chosen.chooses
    assert recipe_from(yaml.safe_load(chosen.to_yaml())) == chosen
    with pytest.raises(ValueError, match="name a number here"):
        _ = chosen.cleaning.kept_proportion
    for strategy in ("full_tokens", "noise_mixture", "random", "auto"):
        with pytest.raises(RecipeError, match=rf"cleaning\.proportion: auto tries .* which {strategy} does not"):
            recipe(strategy=strategy)
    with pytest.raises(RecipeError, match="does not go with the strategy auto"):
        recipe_from(
            {**values, "cleaning": {"strategy": "rho", "proportion": "auto"}, "evaluation": {"controls": ["auto"]}}
        )
    assert not recipe_from(values).chooses
    assert recipe_from({**values, "cleaning": {"strategy": "auto"}}).chooses
    assert recipe_from({**values, "evaluation": {"controls": ["auto"]}}).chooses
