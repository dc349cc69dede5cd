"""What the pages say exists: keys, commands, options, modules, files; and the generated parts leave nothing out."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from itertools import pairwise
from typing import Any

import pytest
import yaml
from page_blocks import DOCS, ROOT, blocks, generator, page, pages

import tokenclean
from tokenclean.cli.main import COMMANDS as PANELS
from tokenclean.cli.main import load_command
from tokenclean.errors import RecipeError
from tokenclean.recipe import PRESETS, STRATEGIES, recipe_from
from tokenclean.tokens.audit.checks import CHECKS

generate = generator()
COMMANDS = {name: load_command(name) for names in PANELS.values() for name in names}
KEYS = {name for name, _ in generate.all_keys()}
SECTIONS = set(generate.all_sections())
PAGES = [*pages(), "../README.md", "../CONTRIBUTING.md", "../SECURITY.md"]
_CODE = re.compile(r"`([^`\n]+)`")


def raw(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def command_lines(name: str) -> list[list[str]]:
    """The words of every tokenclean command of a page, in blocks and in the text, from the command's name on."""
    text = page(name)
    # A line that ends in a backslash goes on in the next; comments, prompts and what precedes a command are left out.
    lines = [line.removeprefix("$ ").split("  #")[0] for line in text.replace("\\\n", " ").splitlines()]
    found = []
    for line in (*lines, *_CODE.findall(text)):
        match = re.match(
            r"^\(?(?:[A-Z_]+=\S+ )?(?:torchrun .*|accelerate launch .*)?(?:-m )?tokenclean ([a-z].*)$", line.strip()
        )
        if match and match[1].split()[0] in COMMANDS:
            found.append(shlex.split(match[1].replace("…", " "), comments=False))
    return found


@pytest.mark.parametrize("name", PAGES)
def test_commands_have_the_options_that_a_page_gives_them(name: str):
    for command, *words in command_lines(name):
        known = {option for parameter in COMMANDS[command].params for option in parameter.opts}
        for word in words:
            if re.match(r"^--?[a-z]", word):
                assert word.split("=")[0] in known, f"{name}: tokenclean {command} {word}"


@pytest.mark.parametrize("name", PAGES)
def test_overrides_name_keys_of_a_recipe(name: str):
    for command, *words in command_lines(name):
        for flag, value in pairwise(words):
            if flag in ("--set", "-s", "--over"):
                key = re.sub(r"\.\d+", "", value.partition("=")[0])
                assert key in KEYS or key in SECTIONS or "KEY" in value, f"{name}: tokenclean {command}: {value}"


@pytest.mark.parametrize("name", pages())
def test_recipes_on_a_page_are_valid(name: str):
    for block in blocks(name):
        if block.language != "yaml" or "…" in block.text:
            continue
        values = yaml.safe_load(block.text)
        values.setdefault("preset", "quick")
        values.setdefault("model", {"base": "base"})
        values.setdefault("pool", {}).setdefault("sources", [{"path": "my.jsonl"}])
        try:
            recipe_from(values)
        except RecipeError as error:
            pytest.fail(f"{name}: {error}")


def test_every_key_has_its_line_and_its_sentence():
    text = page("reference/recipe.md")
    for name, field in generate.all_keys():
        assert f"{{ #{name} }}" in text, name
        assert field.description, name
    assert not re.findall(r"<class|typing\.|None", "".join(line for line in text.splitlines() if line.startswith("|")))


def test_every_command_and_option_is_listed():
    text = page("reference/cli.md")
    for command, record in COMMANDS.items():
        start = text.index(f"### tokenclean {command} ")
        section = text[start : text.find("\n### ", start + 1) if "\n### " in text[start + 1 :] else len(text)]
        for parameter in record.params:
            if parameter.name != "help" and parameter.param_type_name == "option":
                assert f"`{parameter.opts[0]}`" in section, (command, parameter.opts)
    assert "TypeDescriptor" not in text
    assert "<class" not in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [("reference/strategies.md", STRATEGIES), ("reference/audit.md", CHECKS), ("reference/recipe.md", PRESETS)],
)
def test_registries_are_listed(name: str, expected: Any):
    text = page(name)
    for entry in expected:
        assert f"`{entry}`" in text


def test_the_api_has_every_public_name():
    text = page("reference/api/index.md")
    for name in tokenclean.__all__:
        assert f"::: tokenclean.{name}\n" in text


@pytest.mark.parametrize("name", pages())
def test_generated_parts_are_known(name: str):
    assert "<!-- generated" not in page(name)


@pytest.mark.parametrize("name", [*pages(), "../README.md", "../SECURITY.md"])
def test_modules_and_keys_that_a_page_names_exist(name: str):
    sections = "|".join(("pool", "tokens", "model", "cleaning", "scoring", "training", "evaluation"))
    for code in _CODE.findall(raw(name)):
        if re.fullmatch(r"tokenclean(\.\w+)+", code):
            assert_exists(code)
        elif re.fullmatch(rf"(?:{sections})\.[a-z_0-9.]+", code) and not code.endswith((".py", ".html", ".jsonl")):
            assert re.sub(r"\.\d+", "", code) in KEYS | SECTIONS, f"{name}: {code}"


def assert_exists(dotted: str) -> None:
    if dotted in ("tokenclean.strategies", "tokenclean.json"):  # a group of entry points; a file
        return
    try:
        import_module(dotted)
    except ModuleNotFoundError:
        module, _, attribute = dotted.rpartition(".")
        assert hasattr(import_module(module), attribute), dotted


@pytest.mark.parametrize("name", [*PAGES, "../CHANGELOG.md"])
def test_files_of_the_repository_that_a_page_names_exist(name: str):
    for code in _CODE.findall(raw(name)):
        if re.fullmatch(r"(?:tests|examples|recipes|benchmarks|docs|src)/[\w./-]+", code):
            assert (ROOT / code).exists(), f"{name}: {code}"


def test_the_paper_index_names_every_part_of_the_paper():
    text = raw("paper.md")
    for part in ("Eq. 1", "Eq. 2 and 3", "Eq. 4", "Eq. 5", "Eq. 6", "Algorithm 1", "Theorem 5.1", "Corollary 5.1.1"):
        assert part in text
    for number in range(1, 9):
        assert f"Table {number}" in text
    for number in (1, 2):
        assert f"Figure {number}" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| In")]
    assert len(rows) > 40
    for row in rows:
        assert "`tokenclean." in row.split(" | ")[-1], row


def test_no_page_names_a_folder_of_a_machine():
    for path in (*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"):
        assert not re.search(r"/(?:home|root|work|tmp|Users)/\w", path.read_text(encoding="utf-8")), path


class TestRelease:
    def test_the_citation_has_the_version_and_the_paper(self):
        citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
        assert citation["cff-version"] == "1.2.0"
        assert citation["version"] == tokenclean.__version__
        assert citation["authors"] == [{"name": "tokenclean contributors"}]
        assert {"message", "title"} <= set(citation)
        assert "2502.01968" in citation["preferred-citation"]["url"]

    def test_the_changelog_has_its_form(self):
        text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        assert re.findall(r"^## .*$", text, re.MULTILINE)[0] == "## [Unreleased]"
        kinds = re.findall(r"^### (.*)$", text, re.MULTILINE)
        assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}

    def test_the_security_policy_has_no_address(self):
        text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
        assert not re.search(r"\w@\w|https?://", text)

    def test_the_site_has_every_page(self):
        """In the navigation; MkDocs itself would only warn."""
        entries = re.findall(
            r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:\n  -")[2]
        )
        assert set(entries) == {*pages(), "changelog.md", "contributing.md", "security.md"}
        assert len(entries) == len(set(entries))

    def test_links_to_files_hold(self):
        """In the files that are read outside the site too."""
        for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"):
            for link in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
                assert (path.parent / link).exists(), f"{path.name}: {link}"
