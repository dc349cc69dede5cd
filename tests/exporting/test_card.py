from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tokenclean.exporting import Card, CleanedCounts, ModelName, SourceCounts

COUNTS = CleanedCounts((SourceCounts("alpaca", 900, 3, 90_000, 50_000, 30_000), SourceCounts("wiki", 200, 0, 9, 8, 0)))
CARD = Card(
    title="Cleaned alpaca",
    base=ModelName("org/base", "main"),
    references=(ModelName("/home/someone/reference"), ModelName("~/second")),
    strategy="self_evolving",
    counts=COUNTS,
    template="tulu",
    max_length=2048,
    tokenclean_version="0.1.0",
    proportion=0.6,
    threshold=0.0123,
    level="global",
    licences={"alpaca": "CC BY-NC 4.0", "wiki": None},
    recipe="pool:\n  sources:\n  - path: data/private.jsonl\n  - hub: org/data\nmodel:\n  base: /home/someone/base\n",
)


def front_matter(card: Card) -> dict:
    start, matter, _ = card.to_markdown("data.parquet").split("---\n", 2)
    assert start == ""
    return yaml.safe_load(matter)


def test_front_matter_tells_the_hub_task_size_tags_and_files():
    matter = front_matter(CARD)
    assert matter["task_categories"] == ["text-generation"]
    assert matter["size_categories"] == ["1K<n<10K"]
    assert matter["configs"][0]["data_files"] == [{"split": "train", "path": "data.parquet"}]
    assert "token-cleaning" in matter["tags"]


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        ({"alpaca": "MIT", "wiki": "MIT"}, {"license": "mit"}),
        ({"alpaca": "Our Own", "wiki": "Our Own"}, {"license": "other", "license_name": "our-own"}),
        ({"alpaca": "MIT", "wiki": "apache-2.0"}, {}),
        ({"alpaca": "MIT"}, {}),
        ({}, {}),
    ],
)
def test_a_licence_is_claimed_only_where_all_sources_state_the_same(licences, expected):
    matter = front_matter(replace(CARD, licences=licences))
    assert {key: matter[key] for key in ("license", "license_name") if key in matter} == expected


def test_sections_name_models_counts_licences_and_threshold():
    text = CARD.to_markdown("data.parquet")
    assert "| Base model | org/base, revision main |" in text
    assert "| Lowest kept score | 0.0123 nats |" in text
    assert "| alpaca | 900 | 3 | 90,000 | 50,000 | 30,000 | 60.0% |" in text
    assert "| all | 1,100 | 3 | 90,009 | 50,008 | 30,000 | 60.0% |" in text
    assert "- alpaca: CC BY-NC 4.0\n- wiki: not stated" in text
    assert "Lowest kept score" not in replace(CARD, threshold=None).to_markdown("data.parquet")
    assert "Unit" not in replace(CARD, unit="token").to_markdown("data.parquet")
    assert "| Unit | sentence |" in replace(CARD, unit="sentence").to_markdown("data.parquet")


def test_no_folder_of_the_machine_is_told():
    text = CARD.to_markdown("data.parquet")
    assert "someone" not in text
    assert "~/" not in text
    assert "data/private.jsonl" not in text
    recipe = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert recipe["pool"]["sources"] == [{"path": "private.jsonl"}, {"hub": "org/data"}]
    assert recipe["model"]["base"] == "base"


names = st.text(min_size=1).filter(str.strip)
# PyYAML itself does not read back these line ends as it wrote them.
recipes = st.text(st.characters(codec="utf-8", exclude_characters="\x85\u2028\u2029"))


@given(title=names, source=names, licence=names, recipe=recipes)
def test_any_name_keeps_front_matter_tables_and_code_whole(title, source, licence, recipe):
    counts = CleanedCounts((replace(COUNTS.sources[0], source=source),))
    recipe_yaml = yaml.safe_dump({"note": f"note {recipe}"}, allow_unicode=True)  # not a path, whatever follows
    card = replace(CARD, title=title, counts=counts, licences={source: licence}, recipe=recipe_yaml)
    text = card.to_markdown("data.parquet")
    assert front_matter(card)["pretty_name"] == " ".join(title.split())
    lines = text.split("\n")
    start = lines.index("## What is in it")
    head, _, row, total = lines[start + 2 : start + 6]
    assert len({line.replace("\\\\", "").replace("\\|", "").count("|") for line in (head, row, total)}) == 1
    fence = lines[lines.index("## Recipe") + 2].removesuffix("yaml")
    code = lines[lines.index("## Recipe") + 3 :]
    assert code.index(fence) == len(code) - 2
    assert yaml.safe_load("\n".join(code[:-2])) == {"note": f"note {recipe}"}


def test_a_repository_without_parquet_names_no_files():
    assert "configs" not in CARD.to_markdown(None)
