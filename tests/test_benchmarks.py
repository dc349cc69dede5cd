"""The benchmarks measure what they say: on crafted figures, on tiny models, and from the command line."""

from __future__ import annotations

import importlib
import json
import math
import mmap
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tokenclean import Ragged, load_pool
from tokenclean.experiment.demo import pool_path
from tokenclean.pool import Conversation, Pool, Turn
from tokenclean.pool.conversation import LabelledTokens

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # where pytest is not started with `python -m`
machine, scoring, figures, ways, selection, training, quantised, quick, pipeline = (
    importlib.import_module(f"benchmarks.{name}")
    for name in (
        *("machine", "scoring", "scoring_figures", "scoring_ways", "selection", "training", "quantised", "quick"),
        "pipeline",
    )
)

pytestmark = pytest.mark.usefixtures("one_thread")

STAT = """cpu  9999 0 9999 1 1 0 0 0 0 0
cpu0 100 20 30 5000 700 4 5 6 50 0
cpu1 1000 0 0 5000 700 0 0 0 0 0
cpu10 7 0 0 0 0 0 0 0 0 0
intr 12345 0 0
ctxt 1
"""


@pytest.fixture(autouse=True)
def _tiny_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "GEMM_SHAPES", {"cpu": ((8, 16, 32), (4, 2, 2))})
    monkeypatch.setattr(machine, "GEMM_SECONDS", 0.0)


def call(monkeypatch: pytest.MonkeyPatch, benchmark, *arguments: str) -> None:
    monkeypatch.setattr(machine, "refuse_if_busy", lambda *, allow: None)  # which takes a second
    for module in (scoring, training, quantised):
        monkeypatch.setattr(module, "quiet_libraries", lambda: None)  # which outlives the test
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    benchmark.main()


class TestMachine:
    def test_work_of_the_named_cores_without_idling_and_waiting(self):
        tick = 1 / os.sysconf("SC_CLK_TCK")
        assert machine.busy_seconds(STAT, [0]) == pytest.approx(165 * tick)
        assert machine.busy_seconds(STAT, [0, 1]) == pytest.approx(1165 * tick)
        assert machine.busy_seconds(STAT, [10]) == pytest.approx(7 * tick)

    def test_own_work_is_not_others(self):
        before = machine.ProcessorTime(clock=100.0, busy=50.0, own=10.0)
        assert machine.ProcessorTime(102.0, 55.0, 14.0).others_since(before) == pytest.approx(0.5)
        assert machine.ProcessorTime(102.0, 53.9, 14.0).others_since(before) == 0.0  # the kernel counts in ticks

    def observed(self, monkeypatch: pytest.MonkeyPatch, *times) -> None:
        following = iter(times)
        monkeypatch.setattr(machine.ProcessorTime, "now", classmethod(lambda cls: next(following)))

    def test_a_busy_machine_is_refused_or_noted(self, monkeypatch: pytest.MonkeyPatch):
        idle, busy = machine.ProcessorTime(0.0, 0.0, 0.0), machine.ProcessorTime(1.0, 0.75, 0.0)
        self.observed(monkeypatch, idle, busy)
        with pytest.raises(SystemExit, match=r"other processes used 0\.75 cores.*--allow-busy"):
            machine.refuse_if_busy(seconds=0)
        self.observed(monkeypatch, idle, busy)
        assert "no evidence" in (machine.refuse_if_busy(seconds=0, allow=True) or "")
        self.observed(monkeypatch, idle, busy)
        assert machine.refuse_if_busy(limit=0.8, seconds=0) is None

    def test_the_load_average_counts_where_the_system_tells_no_more(self, monkeypatch: pytest.MonkeyPatch):
        self.observed(monkeypatch, None)
        monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0))
        with pytest.raises(SystemExit, match="by the load average"):
            machine.refuse_if_busy()

    @pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs /proc/stat")
    def test_another_process_at_work_is_seen(self):
        program = "import sys; print('ready', flush=True)\nwhile True: pass"
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as other:
            try:
                assert other.stdout is not None
                other.stdout.readline()
                with pytest.raises(SystemExit, match="busy"):
                    machine.refuse_if_busy(limit=0.1, seconds=0.3)
            finally:
                other.kill()

    def test_the_ways_take_turns(self):
        calls: list[str] = []

        def way(name: str):
            return lambda: calls.append(name) or len(calls)

        timings = machine.interleaved({"a": way("a"), "b": way("b")}, 3)
        assert calls == list("ababab")
        assert timings.results == {"a": 1, "b": 2}
        assert [len(seconds) for seconds in timings.seconds.values()] == [3, 3]
        assert machine.interleaved({"a": way("a")}, 1, keep_results=False).results == {}

    def test_few_repeats_and_busy_timings_are_no_evidence(self):
        assert machine.Timings({}, {}, 0.0).warnings(5) == []
        assert machine.Timings({}, {}, None).warnings(5) == []
        assert "4 of at least 5" in machine.Timings({}, {}, 0.0).warnings(4)[0]
        assert "0.90 cores during" in machine.Timings({}, {}, 0.9).warnings(5)[0]

    def test_ratios_are_taken_round_by_round(self):
        ratio = machine.times_as_fast([10.0, 40.0, 9.0], [5.0, 10.0, 3.0])
        assert (ratio.median, ratio.low, ratio.high) == (3.0, 2.0, 4.0)
        with pytest.raises(ValueError, match="zip"):
            machine.times_as_fast([1.0], [1.0, 2.0])

    def test_the_largest_product_rate_of_all_shapes_in_plain_float32(self, monkeypatch: pytest.MonkeyPatch):
        seen = []

        def timed(work, device):
            product = work()
            seen.append((product.dtype, tuple(product.shape), torch.get_float32_matmul_precision()))
            return 2.0, product

        monkeypatch.setattr(machine, "timed", timed)
        torch.set_float32_matmul_precision("medium")
        try:
            assert machine.gemm_gflops("cpu", "float32") == pytest.approx(2 * 8 * 16 * 32 / 2.0 / 1e9)
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision("highest")
        assert {shape for _, shape, _ in seen} == {(8, 32), (4, 2)}
        assert {(dtype, precision) for dtype, _, precision in seen} == {(torch.float32, "highest")}
        seen.clear()
        machine.gemm_gflops("cpu", "bfloat16")
        assert {dtype for dtype, _, _ in seen} == {torch.bfloat16}

    @pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")
    def test_peak_memory_counts_from_its_reset(self):
        machine.reset_peak_memory("cpu")
        before = machine.peak_memory("cpu")
        with mmap.mmap(-1, 200_000_000) as fresh:  # malloc might give memory that this process holds already
            np.frombuffer(fresh, np.uint8)[:] = 1
        high = machine.peak_memory("cpu")
        machine.reset_peak_memory("cpu")
        assert high - before > 150e6
        assert machine.peak_memory("cpu") < high - 150e6

    def test_a_fresh_process_is_another_one(self):
        assert machine.in_fresh_process(os.getpid) != os.getpid()

    def test_a_command_is_watched_and_its_failure_told(self):
        seconds, peak = machine.watched_command([sys.executable, "-c", "bytearray(300_000_000)"])
        assert seconds > 0
        assert peak > 300e6
        with pytest.raises(SystemExit, match=r"failed with 3:\nout of luck"):
            machine.watched_command([sys.executable, "-c", "import sys; print('out of luck'); sys.exit(3)"])

    def test_tables(self):
        rows = [("way", "1"), ("longer way", "1,000")]
        assert machine.table(("name", "s"), rows).splitlines() == [
            "name            s",
            "way             1",
            "longer way  1,000",
        ]
        text = machine.table(("name", "s"), rows, markdown=True).splitlines()
        assert text[:3] == ["| name | s |", "|---|---:|", "| way | 1 |"]

    def test_a_report_prints_its_warnings_and_writes_everything(self, tmp_path: Path, capsys, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["x", "--pool", "a file.jsonl"])
        where = machine.describe("cpu")
        options = SimpleNamespace(json=tmp_path / "out.json", markdown=True)
        machine.report("scoring", where, ["no evidence: a"], {"speed": math.inf}, "the table", options)
        printed = capsys.readouterr().out
        assert "`python -m benchmarks.scoring --pool 'a file.jsonl'`" in printed
        assert "WARNING: no evidence: a" in printed
        assert torch.__version__ in printed
        written = json.loads((tmp_path / "out.json").read_text())
        assert written["warnings"] == ["no evidence: a"]
        assert written["speed"] is None
        assert written["machine"]["threads"] == torch.get_num_threads()
        assert machine.describe(None).torch is None


TINY = ways.Model(None, "tiny", "cpu")


@pytest.fixture(scope="module")
def tiny():
    model = TINY.load()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model


def conversation(number: int, *turns: tuple[str, str], is_trained: bool = True) -> Conversation:
    made = tuple(Turn(role, text, is_trained=is_trained) for role, text in turns)
    return Conversation(f"id{number}", "test", made, "messages", "test.jsonl", number)


def random_pool(characters: list[tuple[int, int]]) -> Pool:
    rows = [conversation(i, ("user", "x" * a), ("assistant", "y" * b)) for i, (a, b) in enumerate(characters)]
    return Pool(tuple(rows))


class TestNaiveWay:
    def test_its_losses_are_those_of_each_row_alone(self, tiny):
        tokens = ways.random_tokens(random_pool([(40 + 20 * i, 100 - 12 * i) for i in range(8)]), 512)
        losses = ways.naive_losses(tiny, tokens)
        for row, (ids, is_target) in enumerate(zip(tokens.input_ids, tokens.is_response, strict=True)):
            ids = torch.from_numpy(ids)
            with torch.no_grad():
                logits = tiny(input_ids=ids[None]).logits[0, :-1]
            expected = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none").numpy()
            start, end = tokens.input_ids.offsets[row : row + 2]
            found = losses[start:end]
            assert np.array_equal(~np.isnan(found), is_target)
            np.testing.assert_allclose(found[is_target], expected[is_target[1:]], atol=1e-5)

    def test_its_bf16_copy_keeps_buffers_ties_and_the_original(self, tiny):
        copied = ways.in_bf16(tiny)
        assert {p.dtype for p in copied.parameters()} == {torch.bfloat16}
        assert all(b.dtype == torch.float32 for b in copied.buffers() if b.is_floating_point())
        assert copied.lm_head.weight is copied.model.embed_tokens.weight
        assert {p.dtype for p in tiny.parameters()} == {torch.float32}
        torch.testing.assert_close(copied.lm_head.weight, tiny.lm_head.weight.bfloat16())

    @given(st.lists(st.integers(1, 50), min_size=1, max_size=20))
    def test_the_batch_that_takes_the_most_memory(self, lengths: list[int]):
        tokens = ways.random_tokens(random_pool([(4 * n, 4) for n in lengths]), 512)
        batches = [tokens.input_ids.lengths[s : s + 6] for s in range(0, len(lengths), 6)]
        found = ways.most_padded_batch(tokens).input_ids.lengths
        assert any(np.array_equal(found, batch) for batch in batches)
        assert found.max() * len(found) == max(batch.max() * len(batch) for batch in batches)


class TestRows:
    def test_drawn_rows_and_others_are_disjoint_in_file_order_and_always_the_same(self):
        pool = load_pool(pool_path())
        drawn, others = ways.draw(pool, 50)
        order = [c.id for c in pool]
        places, further = ([order.index(c.id) for c in part] for part in (drawn, others))
        assert places == sorted(places)
        assert further == sorted(further)
        assert len(set(places) | set(further)) == 50 + ways.REFERENCE_ROWS
        assert [c.id for c in ways.draw(pool, 50)[0]] == [c.id for c in drawn]
        assert places != list(range(50))

    def test_without_a_tokenizer_a_token_is_four_characters(self):
        labelled = LabelledTokens(np.array([3, 4, 5]), np.array([False, True, False]))
        rows = (
            conversation(0, ("user", "x" * 9), ("assistant", "y" * 8), ("user", ""), ("assistant", "z")),
            conversation(1, ("assistant", "y" * 12)),
            conversation(2, ("user", "x"), ("assistant", "y"), is_trained=False),
            conversation(3, ("user", "x" * 40_000), ("assistant", "y")),
            replace(conversation(4), tokens=labelled, kind="tokens"),
        )
        tokens = ways.random_tokens(Pool(rows), 7)
        labels = [row.tolist() for row in tokens.is_response]
        assert labels[0] == [False] * 3 + [True] * 2 + [False] + [True]
        assert labels[1] == [False, True, True]  # never at position 0
        assert labels[2] == [False, False]
        assert labels[3] == [False] * ways.MAX_LENGTH
        assert labels[4] == [False, True, False]
        assert set(tokens.input_ids.values.tolist()) == set(range(7))

    def test_rows_without_a_target_are_left_out(self):
        pool = Pool((conversation(0, ("user", "x")), conversation(1, ("user", "x"), ("assistant", "y" * 8))))
        tokens, others = ways.rows_to_score(pool, 9, TINY, None)
        assert (tokens.ids, others) == (("id1",), None)
        with pytest.raises(SystemExit, match="no row has a response token"):
            ways.rows_to_score(Pool(pool.conversations[:1]), 9, TINY, None)

    def test_a_tokenizer_of_more_ids_than_the_model_is_refused(self, tiny_model_folder: Path):
        assert TINY.vocabulary == 512
        with pytest.raises(SystemExit, match="the model knows 512 only"):
            ways.rows_to_score(load_pool(pool_path()), 40, TINY, str(tiny_model_folder))


class TestFigures:
    def test_useful_flop_counted_token_by_token(self, tiny):
        tokens = ways.random_tokens(random_pool([(40, 60), (8, 12)]), 512)
        hidden, inner, layers, kv = 64, 96, 2, 32
        products = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner + 2 * hidden  # with two norms
        body = 2 * (layers * products + hidden)
        attention = sum(4 * length * hidden * layers / 2 * length for length in (25, 5))
        head = 2 * 512 * hidden * (15 + 3)
        assert ways.useful_flop(tiny, tokens) == pytest.approx(body * 30 + attention + head)

    def test_errors_at_the_response_and_the_sets_kept(self):
        is_response = Ragged(np.array([False, True, True, True, True, True]), np.array([0, 6]))
        zeros, nan = np.zeros(6, np.float32), np.nan
        exact = np.array([nan, 5, 4, 3, 2, 1], np.float32)
        losses = np.array([nan, 5, 4, 3 - 1.5, 2, 1], np.float32)  # the third falls below the fourth
        errors = figures.errors_of(losses, exact, is_response)
        assert (errors.loss_mean, errors.loss_max) == (pytest.approx(0.3), 1.5)
        assert errors.jaccard is None
        reference = np.full(6, 0.25, np.float32)
        found = figures.with_score_errors(errors, (losses, reference), (exact, zeros), is_response)
        assert (found.score_mean, found.score_max) == (pytest.approx((4 * 0.25 + 1.75) / 5), 1.75)
        assert found.jaccard == 2 / 4  # {1, 2, 4} against {1, 2, 3}

    def test_other_losses_are_no_comparison(self):
        exact = np.array([np.nan, 1.0, 2.0])
        assert figures.check_same_losses(exact + 9e-4, exact) == pytest.approx(9e-4)
        with pytest.raises(SystemExit, match=r"differ by 1\.1\de-03 nats|differ by 1\.10e-03 nats"):
            figures.check_same_losses(exact + 1.1e-3, exact)
        with pytest.raises(SystemExit, match="at other positions"):
            figures.check_same_losses(np.array([np.nan, np.nan, 2.0]), exact)

    @given(*[st.floats(0, 100)] * 2, *[st.floats(1e-6, 1)] * 2)
    def test_a_preparation_has_paid_off_where_both_take_the_same(self, further, other, per_token, other_per_token):
        tokens = figures.paid_off_tokens(other + further, per_token, other, other_per_token)
        if per_token >= other_per_token:
            assert tokens == math.inf
        else:
            both = [other + further + tokens * per_token, other + tokens * other_per_token]
            assert both[0] == pytest.approx(both[1], rel=1e-6)

    def test_a_reference_like_the_base_is_no_evidence(self):
        def warnings(spread):
            return figures.Comparison({}, machine.Timings({}, {}, 0.0), 0.0, spread, {}).warnings(5)

        assert warnings(None) == warnings(0.02) == []
        assert "name another --reference" in warnings(0.0)[0]

    def test_the_own_kernels_give_the_product_too(self):
        rows, weight = torch.randn(10, 33), torch.randn(70, 33)
        products = [machine.torch_product]
        if ways.cpu_kernels.missing_kernels() is None:
            products.append(ways.kernel_product)
        for product in products:
            for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.2)):
                if dtype == torch.bfloat16 and not ways.multiplies_bf16("cpu"):
                    continue
                found = product(rows.to(dtype), weight.to(dtype))()
                torch.testing.assert_close(found.float(), rows @ weight.T, atol=tolerance, rtol=0.02)
        peaks = ways.product_peaks("cpu")
        assert set(peaks) == ({"float32", "bfloat16"} if ways.multiplies_bf16("cpu") else {"float32"})
        assert len(peaks["float32"]) == len(products)

    def test_a_folder_is_shown_by_its_name(self, tmp_path: Path):
        assert ways.shown(ways.ModelSource(str(tmp_path), "org/adapter")) == f"{tmp_path.name} + org/adapter"

    def test_planned_ways(self, monkeypatch):
        def names(*arguments):
            return [way.name for way in scoring.planned_ways(*arguments, 9)]

        monkeypatch.setattr(ways, "cpu_multiplies_bf16", lambda: False)
        assert names(["exact", "fast"], "auto", "cpu") == ["naive", "exact", "fast"]
        monkeypatch.setattr(ways, "cpu_multiplies_bf16", lambda: True)
        assert names(["exact", "fast"], "auto", "cpu") == ["naive", "naive bf16", "exact", "fast"]
        assert names(["fast"], "on", "cuda:1") == ["naive bf16", "fast", "fast, not compiled"]
        planned = scoring.planned_ways(["exact", "safe"], "off", "cpu", 9)
        assert [way.peak_dtype for way in planned] == ["float32", "bfloat16", "float32", "bfloat16"]
        assert {way.compile for way in planned[2:]} == {"off"}


@pytest.fixture
def _cached_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(ways, "REFERENCE_ROWS", 12)


QUICK = ("--repeats", "1", "--allow-busy", "--without-memory")


class TestScoringCommand:
    def test_random_model_without_a_tokenizer(self, tmp_path: Path, monkeypatch, capsys):
        out = tmp_path / "out.json"
        options = ("--random-model", "tiny", "--rows", "13", "--repeats", "2", "--allow-busy", "--json", str(out))
        call(monkeypatch, scoring, *options, "--without-memory", "--markdown")
        printed = capsys.readouterr().out
        assert "no evidence: 2 of at least 5 repeats" in printed
        has_bf16 = ways.multiplies_bf16("cpu")
        for name in ("naive", *(("naive bf16",) if has_bf16 else ()), "exact", "safe", "fast"):
            assert f"| {name} |" in printed
        written = json.loads(out.read_text())
        total, way = written["setting"]["tokens"], written["ways"]["exact"]
        assert len(way["seconds"]) == 2
        assert way["tokens_per_second"] == pytest.approx(total / np.median(way["seconds"]))
        assert way["useful_mfu"] == pytest.approx(way["useful_gflops"] / written["gemm_gflops"]["float32"])
        ratios = np.array(written["ways"]["naive"]["seconds"]) / way["seconds"]
        ratio = way["times_as_fast"]["naive"]
        assert [ratio["median"], ratio["low"], ratio["high"]] == pytest.approx(
            [np.median(ratios), ratios.min(), ratios.max()]
        )
        assert way["policy"]["precision"] == "exact"
        assert way["errors"]["loss_max"] == 0.0
        assert written["largest_difference_nats"] < 1e-4
        assert not has_bf16 or written["ways"]["naive bf16"]["errors"]["loss_mean"] > 1e-5

    def test_where_bf16_is_the_only_naive_way_it_is_the_baseline(self, tmp_path: Path, monkeypatch, capsys):
        planned, out = scoring.planned_ways, tmp_path / "out.json"
        monkeypatch.setattr(scoring, "planned_ways", lambda *given: planned(*given[:2], "cuda", 0))
        options = ("--random-model", "tiny", "--rows", "3", *QUICK, "--precisions", "fast", "--json", str(out))
        call(monkeypatch, scoring, *options, "--markdown")
        assert "| useful MFU | × naive bf16 | loss error" in capsys.readouterr().out
        written = json.loads(out.read_text())
        assert list(written["ways"]) == ["naive bf16", "fast"]
        assert set(written["ways"]["fast"]["times_as_fast"]) == {"naive bf16"}
        assert set(written["ways"]["fast"]["paid_off_tokens"]) == {"naive bf16"}
        assert written["largest_difference_nats"] < 1e-4

    @pytest.mark.usefixtures("_cached_here")
    def test_a_reference_is_trained_once_and_its_scores_compared(self, tiny_model_folder, tmp_path, monkeypatch):
        out = tmp_path / "out.json"
        options = (*QUICK, "--model", str(tiny_model_folder), "--rows", "9", "--json", str(out))
        call(monkeypatch, scoring, *options, "--precisions", "exact", "fast")
        written = json.loads(out.read_text())
        (folder,) = (tmp_path / "cache" / "benchmarks").iterdir()
        assert written["setting"]["reference"] == f"tiny + {folder.name}"
        assert (folder / "adapter_config.json").is_file()
        exact, fast = (written["ways"][name]["errors"] for name in ("exact", "fast"))
        assert (exact["score_max"], exact["jaccard"]) == (0.0, 1.0)
        assert (fast["score_mean"] > 0) == ways.multiplies_bf16("cpu")
        assert 0.5 < fast["jaccard"] <= 1
        assert written["score_spread_nats"] > 0

        def refuse(*_arguments, **_options):
            raise AssertionError("trained again")

        monkeypatch.setattr("tokenclean.training.fine_tune.train", refuse)
        call(monkeypatch, scoring, *options, "--precisions", "exact")
        monkeypatch.setattr(ways, "REFERENCE_TRAINING", {"learning_rate": 1e-5})
        with pytest.raises(AssertionError, match="trained again"):
            call(monkeypatch, scoring, *options, "--precisions", "exact")

    def test_a_difference_ends_the_comparison(self, monkeypatch: pytest.MonkeyPatch):
        honest = scoring.naive_losses
        monkeypatch.setattr(scoring, "naive_losses", lambda model, tokens: honest(model, tokens) + 0.01)
        with pytest.raises(SystemExit, match="do not compute the same"):
            call(monkeypatch, scoring, "--random-model", "tiny", "--rows", "2", *QUICK)

    def test_a_difference_in_the_timed_passes_ends_it_too(self, monkeypatch: pytest.MonkeyPatch):
        honest = ways.naive_losses
        monkeypatch.setattr(ways, "naive_losses", lambda model, tokens: honest(model, tokens) + 0.01)
        with pytest.raises(SystemExit, match="do not compute the same"):
            call(monkeypatch, scoring, "--random-model", "tiny", "--rows", "2", *QUICK)

    def test_compiled_ways_are_measured_beside_the_others(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        honest, seen, expected = ways.Scorer, [], []

        class Compiling:
            def __init__(self, model, *, precision, longest_row, compile, expected_tokens):
                seen.append((precision, compile))
                expected.append(expected_tokens)
                self.scorer = honest(model, precision=precision, longest_row=longest_row)
                self.policy = self.scorer.policy

            def score(self, tokens):
                return self.scorer.score(tokens)

        monkeypatch.setattr(ways, "Scorer", Compiling)
        out = tmp_path / "out.json"
        options = ("--random-model", "tiny", "--rows", "2", *QUICK, "--precisions", "fast", "--json", str(out))
        call(monkeypatch, scoring, *options, "--compile", "on")
        written = json.loads(out.read_text())["ways"]
        assert seen == [("exact", "off"), ("fast", "on"), ("fast", "off")]
        setting = json.loads(out.read_text())["setting"]
        assert expected == [0, setting["tokens"] * len(load_pool(pool_path())) // 2, 0]
        assert set(written["fast"]["paid_off_tokens"]) == {"naive", "fast, not compiled"}
        assert set(written["fast, not compiled"]["paid_off_tokens"]) == {"naive"}

    def test_options_that_do_not_fit_are_told(self, monkeypatch: pytest.MonkeyPatch):
        with pytest.raises(SystemExit, match="leave out --model"):
            call(monkeypatch, scoring, "--random-model", "tiny", "--reference", "x", *QUICK)
        with pytest.raises(SystemExit, match="at least 1"):
            call(monkeypatch, scoring, "--random-model", "tiny", "--rows", "0", *QUICK)

    @pytest.mark.slow
    def test_peak_memory_of_a_pass_in_a_process_of_its_own(self):
        tokens = ways.random_tokens(random_pool([(40, 60), (8, 12)]), 512)
        peak = scoring.peak_bytes(TINY, ways.Way("exact", "exact"), tokens)
        assert 50e6 < peak < 4e9


class TestSelectionCommand:
    def test_figures_are_those_of_the_raw_times(self, tmp_path: Path, monkeypatch, capsys):
        out = tmp_path / "out.json"
        options = ("--scores", "20000", "--naive-scores", "5e3", "--repeats", "2", "--allow-busy", "--markdown")
        call(monkeypatch, selection, *options, "--json", str(out), "--folder", str(tmp_path))
        printed = capsys.readouterr().out
        assert "measured on 5,000 scores, its seconds and memory scaled linearly" in printed
        assert "no evidence: 2 of at least 5" in printed
        written = json.loads(out.read_text())
        naive, cut = written["ways"][selection.NAIVE], written["ways"][selection.CUT]
        assert naive["seconds"] == pytest.approx(4 * np.median(naive["measured_seconds"]))
        ratios = 4 * np.array(naive["measured_seconds"]) / cut["measured_seconds"]
        assert cut["times_naive"]["median"] == pytest.approx(np.median(ratios))
        assert naive["peak_bytes"] > written["ways"][selection.IN_RAM]["peak_bytes"] > 20_000
        assert [path.name for path in tmp_path.iterdir()] == ["out.json"]

    def test_ways_that_keep_other_tokens_are_refused(self, monkeypatch: pytest.MonkeyPatch):
        honest = selection.naive_labels
        monkeypatch.setattr(selection, "naive_labels", lambda rows: [row[::-1] for row in honest(rows)])
        with pytest.raises(SystemExit, match="disagree"):
            call(monkeypatch, selection, "--scores", "3000", "--naive-scores", "3000", "--allow-busy")

    def test_a_busy_machine_is_refused(self, monkeypatch: pytest.MonkeyPatch):
        times = iter([machine.ProcessorTime(0.0, 0.0, 0.0), machine.ProcessorTime(1.0, 0.9, 0.0)])
        monkeypatch.setattr(machine.ProcessorTime, "now", classmethod(lambda cls: next(times)))
        monkeypatch.setattr(machine.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(sys, "argv", ["benchmark", "--scores", "3000"])
        with pytest.raises(SystemExit, match="the machine is busy"):
            selection.main()

    @pytest.mark.parametrize(("scores", "repeats"), [(1e8, 5), (1e9, 1)])
    def test_repeats_are_affordable(self, scores, repeats, monkeypatch: pytest.MonkeyPatch):
        def measure(folder, count, naive_count, given_repeats, *, with_ram):
            raise SystemExit(f"{count} {given_repeats}")

        monkeypatch.setattr(selection, "measure", measure)
        with pytest.raises(SystemExit, match=f"{int(scores)} {repeats}"):
            call(monkeypatch, selection, "--scores", str(scores), "--allow-busy")


class TestTrainingCommand:
    OPTIONS = ("--random-model", "tiny", "--rows", "7", "--rank", "4", *QUICK, "--precisions", "exact", "mixed")

    def test_every_way_takes_the_same_step(self, tmp_path: Path, monkeypatch, capsys):
        out = tmp_path / "out.json"
        call(monkeypatch, training, *self.OPTIONS, "--json", str(out), "--markdown")
        assert "| exact |" in capsys.readouterr().out
        written = json.loads(out.read_text())
        assert written["largest_difference"] < 1e-3
        naive = ["naive", *(("naive bf16",) if ways.multiplies_bf16("cpu") else ())]
        ours = ["exact", "mixed", "mixed, a mask a module", "mixed, dropout off"]
        assert list(written["ways"]) == [*naive, *ours]
        way, tokens = written["ways"]["exact"], written["setting"]["tokens"]
        assert way["tokens_per_second"] == pytest.approx(tokens / way["seconds"][0])
        ratio = written["ways"]["naive"]["seconds"][0] / way["seconds"][0]
        assert way["times_as_fast"]["naive"]["median"] == pytest.approx(ratio)
        share = written["setting"]["selected_tokens"] / tokens
        assert share == pytest.approx(0.45, abs=0.01)

    def test_a_step_that_differs_ends_the_comparison(self, monkeypatch: pytest.MonkeyPatch):
        honest = training.naive_loss
        monkeypatch.setattr(training, "naive_loss", lambda *given: honest(*given) * 1.01)
        with pytest.raises(SystemExit, match="do not compute the same"):
            call(monkeypatch, training, *self.OPTIONS)


class TestQuantisedCommand:
    @pytest.mark.usefixtures("_cached_here")
    def test_a_variant_differs_where_something_in_it_does(self, tiny_model_folder, tmp_path, monkeypatch, capsys):
        out = tmp_path / "out.json"
        options = ("--model", str(tiny_model_folder), "--rows", "9", "--allow-busy", "--json", str(out), "--markdown")
        call(monkeypatch, quantised, *options)
        assert "| base and reference in NF4 |" in capsys.readouterr().out
        written = json.loads(out.read_text())
        variants, means = written["variants"], written["mean_loss_nats"]
        assert list(variants) == list(quantised.VARIANTS)
        assert written["setting"]["reference"].startswith("tiny + reference-")
        for name, (base, reference) in quantised.VARIANTS.items():
            of_base, of_reference = variants[name]["base"], variants[name]["reference"]
            assert (of_base["loss_max"] > 0) == (base != "base")
            assert (of_reference["loss_max"] > 0) == (reference != "reference")
            assert of_base["score_max"] > 0
            assert 0.3 < of_base["jaccard"] <= 1
            assert abs(means[base] - means["base"]) <= of_base["loss_mean"] + 1e-6
        both, alone = (variants[name]["base"] for name in ("base and reference in NF4", "base alone in NF4"))
        assert both["loss_mean"] == alone["loss_mean"] > 1e-4
        assert both["score_mean"] < alone["score_mean"]  # what both have in common cancels

    @pytest.mark.usefixtures("_cached_here")
    def test_a_named_reference_is_the_only_one(self, tiny_model_folder, tmp_path, monkeypatch, capsys):
        source = ways.ModelSource(str(tiny_model_folder))
        _, others = ways.rows_to_score(load_pool(pool_path()), 9, ways.Model(source, None, "cpu"), None)
        adapter = ways.trained_reference(source, others, "cpu")
        options = ("--model", str(tiny_model_folder), "--rows", "3", "--reference", str(adapter), "--allow-busy")
        call(monkeypatch, quantised, *options)
        printed = capsys.readouterr().out
        assert "reference alone in NF4" in printed
        assert quantised.ANOTHER_SEED not in printed


@pytest.mark.slow
def test_a_plan_and_its_run_side_by_side(small_pool, tiny_model_folder, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"preset: quick\npool: {{sources: [{{path: {small_pool}}}]}}\nmodel: {{base: {tiny_model_folder}}}\n"
        "cleaning: {strategy: random}\nevaluation: {controls: []}\n"
    )
    file = tmp_path / "figures.json"
    # A process of its own, since the peak of the run it starts begins with its own peak, see watched_command.
    command = [
        sys.executable,
        "-m",
        "benchmarks.plan",
        str(recipe),
        "--set",
        "training.lora.rank=4",
        "--json",
        str(file),
    ]
    done = subprocess.run([*command, "--allow-busy"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert 0.75 < figures["planned"]["memory_bytes"] / figures["run"]["memory_bytes"] < 1.25
    assert figures["run"]["seconds"] > 0
    assert "planned / run" in done.stdout


@pytest.mark.slow
def test_benchmarks_of_both_model_classes(tiny_model_folder, data_dir, tmp_path, monkeypatch, capsys):
    evaluation = importlib.import_module("benchmarks.evaluation")
    monkeypatch.setattr(evaluation, "quiet_libraries", lambda: None)
    file = tmp_path / "figures.json"
    options = ("--data-dir", str(data_dir), "--tasks", "boolq,arc_easy", "--questions", "4", "--json", str(file))
    call(monkeypatch, evaluation, "--model", str(tiny_model_folder), *options)
    found = json.loads(file.read_text())["benchmarks"]
    assert [one["questions"] for one in found] == [4, 4]
    for one in found:
        assert one["largest_nats"] < 1e-3
        assert one["answers_changed"] == 0
        assert one["score"] == pytest.approx(one["harness_score"])
        assert 0 < one["computed_tokens"] < one["requested_tokens"]
    assert "× harness" in capsys.readouterr().out


class TestQuick:
    FIGURES: ClassVar = {
        "ways": {
            "naive": {"times_as_fast": {}},
            "naive bf16": {"times_as_fast": {"naive": {"median": 1.5}}},
            "mixed": {"times_as_fast": {"naive": {"median": 3.0}, "naive bf16": {"median": 2.0}}},
        }
    }

    def test_kind_of_machine_names_the_widest_instructions(self):
        assert quick.kind_of_machine({"avx2", "avx512f", "avx512_bf16"}, 2) == "2 cores, AVX-512 with bf16"
        assert quick.kind_of_machine({"sse2"}, 16) == "16 cores, other"

    def test_ratios_are_ours_against_the_naive_way(self):
        assert dict(quick.ratios_of("training", self.FIGURES)) == {"training: mixed": 3.0}
        selection = {"ways": {"naive": {"times_naive": {"median": 1.0}}, "cut": {"times_naive": {"median": 90.0}}}}
        assert dict(quick.ratios_of("selection", selection)) == {"selection: cut": 90.0}

    def test_what_fell_by_more_than_15_percent_or_is_gone_is_named(self):
        stored = {"a": 4.0, "b": 4.0, "c": 4.0, "gone": 1.0}
        lines, fallen = quick.compare({"a": 3.5, "b": 3.3, "c": 9.0, "new": 2.0}, stored)
        assert fallen == ["b", "gone"]
        assert ["a", "4.00", "3.50", "-12%"] in lines
        assert ["new", "–", "2.00", ""] in lines


@pytest.mark.slow
class TestPipeline:
    def test_naive_and_the_run_come_to_the_same_model(self, tiny_model_folder, tmp_path):
        """Held-out losses differ by no more than what the dropout does."""
        values = pipeline.recipe_of(None, 18)
        values["model"] = {"base": str(tiny_model_folder)}
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(values))
        naive, ours = pipeline.naive(recipe), pipeline.ours(recipe)
        assert ours.loss == pytest.approx(naive.loss, abs=0.05)
        for run in (naive, ours):
            assert 0 < run.inside["passes"] + run.inside["trainings"] < run.seconds
        text = pipeline.table([ours], [naive], ours.seconds, markdown=True)
        assert "| tokenclean run |" in text
        assert "1.00 of the run" in text


def test_spans_from_one_tokenizer_to_another(small_pool, tiny_model_folder, tmp_path, capsys):
    spans = importlib.import_module("benchmarks.spans")
    lines = small_pool.read_text(encoding="utf-8").splitlines()  # of ASCII alone: no two tokens share a character
    (tmp_path / "pool.jsonl").write_text("\n".join(line for line in lines if line.isascii()), encoding="utf-8")
    out = tmp_path / "out.json"
    arguments = (str(tmp_path / "pool.jsonl"), "--model", str(tiny_model_folder), "--rows", "20", "--json", str(out))
    spans.main((*arguments, "--other", str(tiny_model_folder)))
    same = json.loads(out.read_text())
    assert len(same) == 4
    assert {loss["mixed"] for loss in same} == {loss["changed"] for loss in same} == {0.0}
    assert "20 rows" in capsys.readouterr().out
