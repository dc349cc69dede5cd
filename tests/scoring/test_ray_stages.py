"""Embedding, ratings and near-duplicates by the actors of a Ray cluster: the same bits as in one process."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rating_server import conversations
from tokenclean.asking.local_model import LocalModel, ask_in_batches, describe_local_model
from tokenclean.asking.settings import Sampling
from tokenclean.ds2 import embedding
from tokenclean.ds2.rating_prompt import empty_rating_prompt, rating_questions
from tokenclean.errors import ModelError
from tokenclean.executors import LOCAL, Executor, Item
from tokenclean.models.loading.load import resolve_source
from tokenclean.pool import Conversation, duplicates
from tokenclean.pool.conversation import Turn
from tokenclean.servers.answer_cache import ANSWERS, open_cache

pytest.importorskip("ray", reason="needs the extra ray")


pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(scope="module")
def embedding_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random one-layer BERT, whose tokenizer knows single letters."""
    pytest.importorskip("sentence_transformers", reason="needs the extra curate")
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", *map(chr, range(ord("a"), ord("z") + 1))]
    backend = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    folder = tmp_path_factory.mktemp("models") / "embedding"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(names),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(str(folder))
    options = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": 64}
    PreTrainedTokenizerFast(tokenizer_object=backend, **options).save_pretrained(str(folder))
    return folder


def texts(count: int) -> list[str]:
    chosen = random.Random(0)
    return ["".join(chosen.choices("abcdefgh", k=chosen.randint(1, 60))) for _ in range(count)]


def test_vectors_are_those_of_one_process(on_ray, embedding_folder, monkeypatch):
    monkeypatch.setattr(embedding, "_AT_ONCE", 64)
    some, seen = texts(300), []
    here = embedding.embed(some, str(embedding_folder), max_tokens=32)
    there = embedding.embed(
        some,
        str(embedding_folder),
        max_tokens=32,
        progress=lambda done, total: seen.append((done, total)),
        executor=on_ray,
    )
    assert there.tobytes() == here.tobytes()
    assert seen == [(64, 300), (128, 300), (192, 300), (256, 300), (300, 300)]
    with (
        pytest.raises(ModelError, match=r"Ray node .*has other weights here; copy the same to all nodes"),
        on_ray.open(embedding.EmbeddingWork(str(embedding_folder), "0" * 64, "cpu", None)) as compute,
    ):
        list(compute([Item(0, 0, lambda: ["a"], "one text")]))


@pytest.fixture
def rater(tiny_model_folder: Path) -> LocalModel:
    return describe_local_model(
        resolve_source(str(tiny_model_folder)), Sampling(top_k=50, max_tokens=4, seed=5), empty_rating_prompt()
    )


def test_ratings_begun_here_are_finished_on_ray_with_the_answers_of_one_process(on_ray, rater, tmp_path):
    questions = rating_questions(conversations(9), rater.asked)

    def ask(folder: str, executor: Executor, stop_at: int = 0):
        def stop(done: int, total: int) -> None:
            if stop_at and done >= stop_at:
                raise KeyboardInterrupt

        with open_cache(tmp_path / folder) as cache, executor.open(rater) as answer:
            return ask_in_batches(questions, answer, cache, attempts=2, batch_size=2, progress=stop)

    whole = ask("whole", LOCAL)
    with pytest.raises(KeyboardInterrupt):
        ask("begun", LOCAL, stop_at=4)
    resumed = ask("begun", on_ray)
    there = ask("there", on_ray)
    assert (resumed.asked, there.asked) == (whole.asked - 4, whole.asked)
    assert there.answers == resumed.answers == whole.answers
    for folder in ("begun", "there"):
        assert (tmp_path / folder / ANSWERS).read_bytes() == (tmp_path / "whole" / ANSWERS).read_bytes()


class KillingRows(Sequence[Conversation]):
    """Rows that call a function when the block from row ``start`` is read."""

    def __init__(self, rows: list[Conversation], start: int, kill: Callable[[], None]) -> None:
        self._rows, self._start, self._kill = rows, start, kill

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice) and key.start == self._start:
            self._kill()
        return self._rows[key]


def row_of(number: int, text: str) -> Conversation:
    return Conversation(f"r{number}", "pool", (Turn("user", "Say it."), Turn("assistant", text)))


def test_near_duplicates_are_those_of_one_process_though_a_node_dies(on_ray, cluster, monkeypatch):
    monkeypatch.setattr(duplicates, "_BLOCK_ROWS", 20)
    chosen = random.Random(1)
    words = [[f"w{chosen.randint(0, 500)}" for _ in range(40)] for _ in range(60)]
    changed = [[*some[:39], "changed"] for some in words]
    mixed = [" ".join(some) for pair in zip(words, changed, strict=True) for some in pair]
    chosen.shuffle(mixed)
    rows = [row_of(number, text) for number, text in enumerate(mixed)]
    here = duplicates.near_duplicates(rows, 0.7)
    assert len(here) == 60

    def kill() -> None:
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    # The fourth block is read when one was computed: some actors have started, and others are about to.
    assert duplicates.near_duplicates(KillingRows(rows, 60, kill), 0.7, on_ray) == here
    assert len(cluster.worker_nodes) == 1
