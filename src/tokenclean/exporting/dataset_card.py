"""The card (README.md) of a cleaned data set: its origin, what its labels mean, how to train on it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path, PurePosixPath

import yaml

from tokenclean.exporting.cleaned_file import CleanedCounts

_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
# The Hub refuses a card whose `license` it does not know; any other goes under `license_name`.
_HUB_LICENCES = """
apache-2.0 mit isc unlicense bsd-2-clause bsd-3-clause mpl-2.0 gpl-3.0 lgpl-3.0 agpl-3.0 cc0-1.0 cc-by-3.0
cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0
cc-by-nc-nd-4.0 odc-by odbl pddl openrail cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 llama2 llama3
llama3.1 llama3.2 llama3.3 gemma
"""
_TRAINING = """\
Every row is one conversation in tokens. `labels` holds the token's id where the token is trained and −100 where it is
not; `labels[t]` belongs to `input_ids[t]`, and the model shifts. `completion_mask` is 1 at the same places,
`token_weight` is the weight of the token's loss (0 where it is not trained, below 0, without a label, where it is to be
unlearned), `attention_mask` is 1 everywhere.

```python
from datasets import load_dataset

rows = load_dataset("FOLDER_OR_REPOSITORY", split="train")
```

Train with the base model's own tokenizer, apply no chat template and add no token: the ids are final. Set the trainer's
maximum length to at least {max_length} tokens (no row is longer); many trainers cut longer rows without a word. A
trainer that reads `input_ids`, `attention_mask` and `labels` needs nothing else; fractions in `token_weight` need a
loss of your own."""


@dataclass(frozen=True)
class ModelName:
    """``name``: Hub id or local path, as given. ``revision``: branch, tag or commit; None for the default one."""

    name: str
    revision: str | None = None

    def seen_from(self, folder: Path) -> str:
        """The name for a configuration that is used inside ``folder``: a relative path for a local model."""
        if Path(self.name).is_absolute() or not Path(self.name).exists():
            return self.name
        return os.path.relpath(self.name, folder)


@dataclass(frozen=True)
class Card:
    """The contents of a card.

    ``threshold``: the lowest kept score (nats); None for a strategy without scores. ``unit``: what the scores rank,
    single tokens, sentences or rows. ``counts``: from the cleaned file. ``licences``: source name -> licence, None
    where none was stated. ``recipe``: the recipe as YAML. ``keeps_everything``: the labels are those of the data before
    cleaning. ``changes``: what the form of the export cannot hold, a sentence each.
    """

    title: str
    base: ModelName
    strategy: str
    counts: CleanedCounts
    template: str
    max_length: int
    tokenclean_version: str
    references: tuple[ModelName, ...] = ()
    proportion: float | None = None
    threshold: float | None = None
    level: str | None = None
    unit: str | None = None
    licences: Mapping[str, str | None] = field(default_factory=dict)
    recipe: str = ""
    keeps_everything: bool = False
    changes: tuple[str, ...] = ()

    def to_markdown(self, data_files: str | None) -> str:
        """README.md of a Hub data-set repository: YAML front matter, then plain sections.

        ``data_files``: the Parquet file in the repository, None where it holds none. Local paths are cut to their last
        part, also in the recipe, so that a card reveals nothing about the machine.
        """
        matter = yaml.safe_dump(self._front_matter(data_files), sort_keys=False, allow_unicode=True, width=1000)
        training = _TRAINING.format(max_length=f"{self.max_length:,}")
        parts = [
            f"---\n{matter}---",
            f"# {_inline(self.title)}",
            self._lead(),
            "## How the tokens were chosen\n\n" + _table(("", ""), self._choice()),
            "## What is in it\n\n" + self._counts_table(),
            *self._changes(),
            "## Labels and training\n\n" + training,
            "## Licences\n\n" + self._licence_text(),
        ]
        if self.recipe:
            parts.append("## Recipe\n\n" + _fenced(without_folders(self.recipe)))
        return "\n\n".join(parts) + "\n"

    def _changes(self) -> list[str]:
        if not self.changes:
            return []
        return ["## What this form changes\n\n" + "\n".join(f"- {_inline(text)}" for text in self.changes)]

    def _lead(self) -> str:
        version = _inline(self.tokenclean_version)
        if self.keeps_everything:
            return (
                f"Token labels for supervised fine-tuning, written by tokenclean {version}. The strategy "
                f"{_inline(self.strategy)} drops no token: these are the ordinary labels of the data, every response "
                "token being trained. What it does beyond that is in the model of its run, not in these labels."
            )
        return (
            f"Token labels for supervised fine-tuning, cleaned with tokenclean {version}: the tokens worth training on "
            "are kept, all others are context only ([Token Cleaning](https://arxiv.org/abs/2502.01968))."
        )

    def _front_matter(self, data_files: str | None) -> dict[str, object]:
        matter: dict[str, object] = {"pretty_name": " ".join(self.title.split())}
        licence = self._common_licence()
        if licence:
            slug = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")
            matter |= {"license": slug} if slug in _HUB_LICENCES.split() else {"license": "other", "license_name": slug}
        rows = self.counts.total.rows
        if data_files is not None:
            split = {"split": "train", "path": data_files}
            matter["configs"] = [{"config_name": "default", "data_files": [split]}]
        return matter | {
            "task_categories": ["text-generation"],
            "tags": ["token-cleaning", "sft", "tokenclean"],
            "size_categories": [next((name for limit, name in _SIZES if rows < limit), "10M<n<100M")],
        }

    def _common_licence(self) -> str | None:
        """The licence that all sources state, or None where one states no licence or a different one."""
        stated = {self.licences.get(source.source) for source in self.counts.sources}
        return stated.pop() if len(stated) == 1 else None

    def _choice(self) -> list[tuple[str, str]]:
        optional = {
            "Selected token proportion": None if self.proportion is None else f"{self.proportion:g}",
            "Lowest kept score": None if self.threshold is None else f"{self.threshold:.6g} nats",
            "Level": self.level,
            "Unit": None if self.unit == "token" else self.unit,
        }
        return [
            ("Strategy", _inline(self.strategy)),
            ("Base model", _model(self.base)),
            *(("Reference model", _model(reference)) for reference in self.references),
            *((name, _inline(value)) for name, value in optional.items() if value is not None),
            ("Chat template", _inline(self.template)),
            ("Maximum length", f"{self.max_length:,} tokens"),
        ]

    def _counts_table(self) -> str:
        names = ("source", "rows", "rows left out", "tokens", "response tokens", "kept tokens", "kept share")
        rows = []
        for line in (*self.counts.sources, self.counts.total):
            name, *numbers = astuple(line)
            share = f"{line.kept_tokens / line.response_tokens:.1%}" if line.response_tokens else "–"
            rows.append((_inline(name), *(f"{n:,}" for n in numbers), share))
        return _table(names, rows) + (
            "\n\nRows without any kept token are left out; the Parquet file's metadata lists their ids. "
            "Response tokens include those of the rows left out."
        )

    def _licence_text(self) -> str:
        named = [(s.source, self.licences.get(s.source)) for s in self.counts.sources]
        lines = [f"- {_inline(source)}: {_inline(licence) if licence else 'not stated'}" for source, licence in named]
        return "Each row keeps the licence of its source.\n\n" + "\n".join(lines)


def public_name(name: str) -> str:
    """A model's or file's name without the folders of this machine; Hub ids and URLs are unchanged."""
    path = name.replace("\\", "/").removeprefix("file://")
    is_local = path.startswith(("/", "~", "./", "../")) or re.match(r"[A-Za-z]:/", path)
    return (PurePosixPath(path).name or path) if is_local else name


def without_folders(recipe: str) -> str:
    """The recipe's YAML with every local path cut to its last part, and without the addresses of servers."""

    def cut(value: object) -> object:
        if isinstance(value, dict):
            # A source's `path` is local by definition, be it relative or not.
            return {
                k: PurePosixPath(v).name if k == "path" and isinstance(v, str) else cut(v)
                for k, v in value.items()
                if k != "url"
            }
        if isinstance(value, list):
            return [cut(inner) for inner in value]
        return public_name(value) if isinstance(value, str) else value

    return yaml.safe_dump(cut(yaml.safe_load(recipe)), sort_keys=False, allow_unicode=True)


def _model(model: ModelName) -> str:
    name = _inline(public_name(model.name))
    return f"{name}, revision {_inline(model.revision)}" if model.revision else name


def _table(names: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    head = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join(head + ["| " + " | ".join(row) + " |" for row in rows])


def _inline(text: str) -> str:
    """Text that stays text in Markdown, on one line and in one cell of a table."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(text.split()))


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}yaml", text.rstrip("\n"), fence])
