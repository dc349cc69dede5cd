"""The viewer's page in a browser: what it shows, what it answers to, how fast, and that it asks the network nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from tokenclean.ragged import Ragged
from tokenclean.report.viewer.page import write_page
from tokenclean.report.viewer.page_data import View, ViewedTable, open_view
from tokenclean.report.viewer.ranked_table import Sample
from tokenclean.selection import select_tokens
from tokenclean.token_table import TokenTable
from viewer_tables import byte_level, prose, table_of

pytestmark = pytest.mark.slow

PHONE = {"width": 360, "height": 740}
DESK = {"width": 1400, "height": 900}
FAMILY = "👨‍👩‍👧‍👦"


@pytest.fixture
def visit(open_page) -> Callable[..., Any]:
    """As ``open_page``, once the page says that it is ready."""

    def opened(path: Path, fragment: str = "", **options: Any) -> Any:
        page = open_page(path, fragment, **options)
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    return opened


def view_of(*tables: TokenTable, **options: int) -> View:
    names = ("fixed_model", "random")
    return open_view(
        [ViewedTable.of_table(name, table) for name, table in zip(names, tables, strict=False)],
        byte_level(),
        Sample(**options),
    )


@pytest.fixture(scope="module")
def table() -> TokenTable:
    return table_of(byte_level(), prose(40))


@pytest.fixture(scope="module")
def one(table, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "one.html"
    write_page(view_of(table), path, title="Tokens of fixed_model")
    return path


@pytest.fixture(scope="module")
def two(table, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "two.html"
    other = table_of(byte_level(), prose(40), seed=9, strategy="random")
    write_page(view_of(table, other), path, title="Tokens of fixed_model and random")
    return path


def wait_until(page, condition: str) -> None:
    """Playwright's own waiting evaluates a string in the page, which the page's policy forbids."""
    for _ in range(100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"this has not become true: {condition}")


def kept_on_page(page, side: int = 0) -> list[bool]:
    """Whether each span of the open conversation is shown as kept."""
    return page.eval_on_selector_all(
        f".block .cell:nth-child({side + 1}) .t", "spans => spans.map(span => span.classList.contains('kept'))"
    )


def cut_at(page, step: int) -> None:
    page.evaluate(
        """async step => {
          const slider = document.getElementById('slider');
          slider.value = step;
          slider.dispatchEvent(new Event('input', {bubbles: true}));
          await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
        }""",
        step,
    )


def options_on_page(page) -> list[str]:
    return page.eval_on_selector_all(".option span:first-child", "names => names.map(name => name.textContent)")


def shares_on_page(page) -> dict[str, list[str]]:
    rows = page.eval_on_selector_all(
        "#shares tbody tr, #shares tfoot tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return {name: cells for name, *cells in rows}


def shares_of(table: TokenTable, kept: Ragged) -> dict[str, list[str]]:
    response, sums = table["is_response"].row_sums(), kept.row_sums()
    names = np.array(table.sources)
    rows = {name: names == name for name in dict.fromkeys(table.sources)} | {"all": np.ones(len(names), bool)}
    return {
        name: [f"{int(response[at].sum()):,}", f"{100 * sums[at].sum() / response[at].sum():.1f} %"]
        for name, at in rows.items()
    }


def test_the_page_opens_with_the_tables_labels(visit, one, table):
    page = visit(one)
    assert page.title() == "Tokens of fixed_model"
    assert page.inner_text("#heading") == "garden:0"
    assert kept_on_page(page) == table["is_kept"][0].tolist()
    assert page.inner_text("#text").replace("\n", "") == view_of(table).spans[0].text.replace("\n", "")
    assert shares_on_page(page) == shares_of(table, table["is_kept"])
    assert "as in the table" in page.inner_text("#cut-status")
    assert page.inner_text("#totals").startswith("40 of 40 conversations")


def test_the_slider_cuts_as_the_selection_does(visit, one, table):
    page = visit(one)
    for step in (0, 1, 137, 600, 625, 999, 1000):
        cut_at(page, step)
        kept = select_tokens(table["score"], table["is_response"], proportion=step / 1000)
        assert kept_on_page(page) == kept[0].tolist()
        assert shares_on_page(page) == shares_of(table, kept)
        assert page.input_value("#percent") == f"{step / 10:.1f}"
    page.click("#own")
    assert kept_on_page(page) == table["is_kept"][0].tolist()
    assert page.is_disabled("#own")
    page.fill("#percent", "25")
    wait_until(page, "document.getElementById('slider').value === '250'")


def test_hover_and_focus_show_a_token(visit, one, table):
    page = visit(one)
    row = int(np.flatnonzero(table["is_response"][0])[0])
    page.hover(f".t[data-span='{row}']")
    facts = page.inner_text("#token-facts")
    score = float(table["score"][0][row])
    assert f"position {row}" in facts
    assert f"id {int(table['input_ids'][0][row])}" in facts
    values = table["score"].values[table["is_response"].values]
    rank = int(np.sum(values > score)) + 1  # the pool's first token comes first among equals
    assert f"{rank:,} of {len(values):,}" in facts
    for name in ("base_loss", "reference_loss", "score"):
        shown = float(facts.split(name.replace("_", " "))[1].split("nats")[0].replace("−", "-"))
        assert shown == pytest.approx(float(table[name][0][row]), rel=0.006, abs=1e-4)
    page.click(f".t[data-span='{row + 2}']")
    assert page.evaluate("document.activeElement.dataset.span") == str(row + 2)
    page.keyboard.press("ArrowLeft")
    assert f"position {row + 1}" in page.inner_text("#token-facts")
    wait_until(page, "document.getElementById('said').textContent.includes('score')")


def test_filters_search_and_orders(visit, one, table):
    page = visit(one)
    names = np.array(table.ids)
    page.select_option("#source", label="rare")
    assert options_on_page(page) == [name for name in names if name.startswith("rare")]
    assert page.inner_text("#heading") == "rare:9"
    page.select_option("#source", label="all")
    page.fill("#query", "QUESTION 17:")
    wait_until(page, "document.querySelectorAll('.option').length === 1")
    assert page.inner_text("#heading") == names[17]
    assert "".join(page.eval_on_selector_all(".hit", "spans => spans.map(span => span.textContent)")) == "Question 17:"
    page.fill("#query", "no such words")
    wait_until(page, "document.querySelectorAll('.option').length === 0")
    assert page.inner_text("#found") == "(0 of 40)"
    page.fill("#query", "")
    wait_until(page, "document.querySelectorAll('.option').length > 5")

    scores = np.where(table["is_response"].values, table["score"].values, 0)
    counts = table["is_response"].row_sums()
    keys = {
        "length": table["input_ids"].lengths,
        "share": table["is_kept"].row_sums() / counts,
        "score": table["score"].with_values(scores).row_sums() / counts,
    }
    for name, key in keys.items():
        page.select_option("#sort", name)
        for is_descending in (False, True):
            page.set_checked("#descending", is_descending)
            best = np.argsort(-key if is_descending else key, kind="stable")
            assert options_on_page(page)[:8] == names[best[:8]].tolist()


def test_a_page_is_used_with_the_keyboard_alone(visit, one):
    page = visit(one)
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "list":
            break
    assert page.get_attribute("#list", "aria-activedescendant") == "option-0"
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#heading") == "kitchen:1"
    page.keyboard.press("End")
    assert page.inner_text("#heading") == "rare:39"
    assert page.get_attribute("#option-39", "aria-selected") == "true"
    assert page.get_attribute("#option-39", "aria-posinset") == "40"
    page.keyboard.press("Home")
    page.keyboard.press("j")
    assert page.inner_text("#heading") == "kitchen:1"
    page.keyboard.press("k")
    assert page.inner_text("#heading") == "garden:0"
    page.keyboard.press("c")
    assert page.input_value("#paint") == "score"
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.type("jk?")
    assert page.input_value("#query") == "jk?"
    page.fill("#query", "")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "slider":
            break
    page.keyboard.press("ArrowRight")
    wait_until(page, "document.getElementById('percent').value === '60.1'")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("'span' in document.activeElement.dataset"):
            break
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("Number(document.activeElement.dataset.span)") == page.locator("#text .t").count() - 2
    assert page.locator("#text .t[tabindex]").count() == 1
    page.click("#help-button")
    page.uncheck("#keys")
    page.keyboard.press("Escape")
    heading = page.inner_text("#heading")
    page.keyboard.press("j")
    assert page.inner_text("#heading") == heading


def test_a_link_leads_back(visit, one, table):
    page = visit(one, f"#c={quote('rare:19')}&k=0.25&by=base_loss&t=12")
    assert page.inner_text("#heading") == "rare:19"
    assert page.input_value("#percent") == "25.0"
    assert page.input_value("#paint") == "base_loss"
    assert "position 12" in page.inner_text("#token-facts")
    kept = select_tokens(table["score"], table["is_response"], proportion=0.25)
    assert kept_on_page(page) == kept[19].tolist()
    page.keyboard.press("j")
    link = page.get_attribute("#permalink", "href")
    wait_until(page, "location.hash.includes('garden%3A20')")
    again = visit(one, link)
    assert again.inner_text("#heading") == "garden:20"
    assert again.input_value("#percent") == "25.0"
    again.evaluate("location.hash = 'c=garden%3A2'")
    wait_until(again, "document.getElementById('heading').textContent === 'garden:2'")
    assert kept_on_page(again) == table["is_kept"][2].tolist()
    assert visit(one, "#c=nobody&k=7&by=x&t=-1").inner_text("#heading") == "garden:0"


def test_two_tables_stand_side_by_side(visit, two, table):
    page = visit(two)
    other = table_of(byte_level(), prose(40), seed=9)
    assert kept_on_page(page, 0) == table["is_kept"][0].tolist()
    assert kept_on_page(page, 1) == other["is_kept"][0].tolist()
    differs = table["is_kept"][0] != other["is_kept"][0]
    for side in (1, 2):
        marked = page.eval_on_selector_all(
            f".cell:nth-child({side}) .t", "spans => spans.map(span => span.classList.contains('differs'))"
        )
        assert marked == differs.tolist()
    assert f"{int(differs.sum())} tokens differ" in page.inner_text("#summary")
    left, right = (page.locator(f".block:not(.names) .cell:nth-child({side})").first.bounding_box() for side in (1, 2))
    assert left["x"] + left["width"] <= right["x"]
    page.keyboard.press("d")
    assert page.evaluate("Number(document.activeElement.dataset.span)") == int(np.flatnonzero(differs)[0])
    page.keyboard.press("D")
    assert page.inner_text("#token-facts").count("rank in the pool") == 2
    cut_at(page, 300)
    for side, own in enumerate((table, other)):
        kept = select_tokens(own["score"], own["is_response"], proportion=0.3)
        assert kept_on_page(page, side) == kept[0].tolist()
    page.select_option("#sort", "differing")
    page.set_checked("#descending", True)
    kept = [select_tokens(own["score"], own["is_response"], proportion=0.3).values for own in (table, other)]
    most = int(np.argmax(table["is_kept"].with_values(kept[0] != kept[1]).row_sums()))
    assert options_on_page(page)[0] == table.ids[most]


def test_a_table_without_scores_has_no_slider(visit, table, tmp_path):
    columns = {name: table[name] for name in ("input_ids", "is_response", "is_kept")}
    write_page(view_of(TokenTable(table.ids, table.sources, columns)), tmp_path / "p.html", title="t")
    page = visit(tmp_path / "p.html")
    assert page.locator("#slider").count() == 0
    assert "The table has no scores, so there is no ranking and no slider." in page.inner_text("#notes")
    assert kept_on_page(page) == table["is_kept"][0].tolist()
    assert page.locator("#paint option").count() == 1


def test_a_strategy_without_scores_says_what_it_did(visit, table, tmp_path):
    columns = {name: table[name] for name in ("input_ids", "is_response", "is_kept")}
    unscored = TokenTable(table.ids, table.sources, columns, {**table.metadata, "strategy": "noise_mixture"})
    rates = {name: number / 100 for number, name in enumerate(table.ids)}
    view = open_view([ViewedTable("noise_mixture", lambda: [unscored], rates)], byte_level())
    write_page(view, tmp_path / "p.html", title="t")
    page = visit(tmp_path / "p.html")
    assert "noise_mixture drops no token by itself" in page.inner_text("#cut-status")
    assert "estimated noise 0.0 %" in page.inner_text("#summary")
    page.select_option("#sort", "noise")
    page.set_checked("#descending", True)
    assert options_on_page(page)[0] == table.ids[-1]


def test_weights_are_a_colour_of_their_own(visit, table, tmp_path):
    weight = table["is_kept"].with_values(np.linspace(0, 1, len(table["is_kept"].values), dtype=np.float32))
    write_page(view_of(table.with_columns({}, weight=weight)), tmp_path / "p.html", title="t")
    page = visit(tmp_path / "p.html")
    page.select_option("#paint", "weight")
    assert page.locator("#text .t.low.q10").count() > 0
    page.keyboard.press("End")
    assert "weight" in page.inner_text("#legend")


def test_a_sample_says_so(visit, table, tmp_path):
    write_page(view_of(table, conversations=10, seed=4), tmp_path / "p.html", title="t")
    page = visit(tmp_path / "p.html")
    assert page.inner_text("#totals").startswith("10 of 40 conversations")
    assert "A sample, drawn by source with seed 4" in page.inner_text("#totals")
    assert shares_on_page(page) == shares_of(table, table["is_kept"])


def luminance(colour: str) -> float:
    red, green, blue = (int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(", "))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_dark_and_light(visit, one):
    ground = "getComputedStyle(document.body).backgroundColor"
    assert luminance(visit(one, color_scheme="light").evaluate(ground)) > 200
    page = visit(one, color_scheme="dark")
    assert luminance(page.evaluate(ground)) < 50
    page.select_option("#theme", "light")
    assert luminance(page.evaluate(ground)) > 200


@pytest.mark.parametrize("width", [320, 360, 800, 1100])
def test_narrow_screens_scroll_downwards_only(visit, one, two, width):
    for path in (one, two):
        page = visit(path, viewport={"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width < 700:
        assert page.locator(".block:not(.names) .cell:visible").count() == page.locator(".block:not(.names)").count()
        page.check("[name=side][value='1']")
        assert page.locator(".block:not(.names) .cell:nth-child(2)").first.is_visible()
        page.click(".cell:nth-child(2) .t >> nth=3")
        assert "position 3" in page.inner_text("#token-facts")


def test_hostile_text_stays_text(visit, tmp_path):
    long = "<img src=x onerror=alert(2)> the water " * 27_000  # 1 MB
    texts = [
        "</script><script>alert(1)</script>",
        "</textarea><!-- <script> &lt;b&gt;",
        "left \u202eoverride\u202c \u2066isolate\u2069 \x00\x1b[31m\x7f\u0085 end",
        "<iframe src=//a.invalid></iframe><style>*{display:none}</style>",
        long,
    ]
    table = table_of(byte_level(), [(text[:40], text[:40], text) for text in texts])
    table = TokenTable((*texts[:4], "long"), table.sources, table.columns, table.metadata)
    write_page(view_of(table, tokens=2_000_000), tmp_path / "p.html", title=texts[0])
    page = visit(tmp_path / "p.html")
    assert page.title() == texts[0]
    for number, text in enumerate(texts[:2]):
        assert page.inner_text("#heading") == text
        assert page.text_content("#text") == text + text if number < 1 else True
        page.keyboard.press("j")
    shown = page.text_content("#text")
    assert not {"\u202e", "\u2066", "\x00", "\x1b", "\x7f", "\u0085"} & set(shown)
    assert "left ‹U+202E›override‹U+202C› ‹U+2066›isolate‹U+2069› ␀␛[31m␡‹U+0085› end" in shown
    page.keyboard.press("j")
    assert page.locator("iframe, img, main style, main script").count() == 0
    taken = page.evaluate(
        """async () => {
          const start = performance.now();
          document.getElementById('next').click();
          await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
          return performance.now() - start;
        }"""
    )
    assert page.inner_text("#heading") == "long"
    assert len(page.text_content("#text")) == len(long) + 40
    assert page.locator("#text .t").count() < 20_000
    print(f"1 MB answer opened in {taken:.0f} ms")
    assert taken < 10_000
    page.evaluate("scrollTo(0, document.body.scrollHeight / 2)")
    page.wait_for_timeout(300)
    # Between two lines lies no token, so several points above each other are asked.
    assert page.evaluate(
        "[0, 6, 12, 18, 24].some(y => "
        "document.elementFromPoint(innerWidth / 2, innerHeight / 2 + y).closest('.t') !== null)"
    )
    cut_at(page, 500)


def test_characters_of_all_scripts_stay_whole(visit, tmp_path):
    answer = f"水は流れる。\nمرحبا بالعالم كيف حالك\nשלום עולם\n{FAMILY} 👍🏽 🇩🇪\nनमस्ते क्षत्रिय\ne\u0301"
    table = table_of(byte_level(), [("s", "Question", answer)])
    write_page(view_of(table), tmp_path / "p.html", title="t")
    page = visit(tmp_path / "p.html")
    spans = page.eval_on_selector_all("#text .t", "spans => spans.map(span => span.textContent)")
    assert "".join(spans) == "Question" + answer
    assert {FAMILY, "👍🏽", "🇩🇪", "क्ष", "e\u0301", "水"} <= set(spans)
    page.hover(f"#text .t >> text='{FAMILY}'")
    assert page.inner_text("#token-facts").count("id ") == len(FAMILY.encode())
    # Each line goes its own way, and Arabic letters join across tokens as they do in one piece.
    place = "text => [...document.querySelectorAll('.cell .t')].find(t => t.textContent === text).offsetLeft"
    assert page.evaluate(place, "م") > page.evaluate(place, "ب")
    assert page.evaluate(place, "水") < page.evaluate(place, "流")
    in_tokens, in_one_piece = page.evaluate(
        """() => {
          const tokens = [...document.querySelectorAll('.cell .t')], cell = document.querySelector('.cell');
          const first = tokens.findIndex(token => token.textContent === 'م');
          const word = tokens.slice(first, first + 5);
          const range = document.createRange();
          range.setStartBefore(word[0]);
          range.setEndAfter(word[4]);
          const width = () => {
            const boxes = [...range.getClientRects()];
            return Math.max(...boxes.map(box => box.right)) - Math.min(...boxes.map(box => box.left));
          };
          const styled = width();
          cell.textContent = word.map(token => token.textContent).join('');
          range.selectNodeContents(cell);
          return [styled, width()];
        }"""
    )
    assert in_tokens == pytest.approx(in_one_piece, abs=1)


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    """As much as a page holds: 2,000 conversations with 400,000 tokens."""
    rng = np.random.default_rng(0)
    count, length = 2_000, 200
    known = [token for token in range(20, 268) if token not in range(127, 256)]
    ids = Ragged.from_rows(list(rng.choice(known, (count, length))), np.int64)
    is_response = Ragged.from_rows([np.arange(length) >= 20] * count, np.bool_)
    base, reference = (ids.with_values(rng.gamma(1, 2, count * length).astype(np.float32)) for _ in range(2))
    score = base - reference
    kept = select_tokens(score, is_response, proportion=0.6)
    columns = {"input_ids": ids, "is_response": is_response, "base_loss": base, "reference_loss": reference}
    names = tuple(f"source {number % 8}" for number in range(count))
    table = TokenTable(
        tuple(f"{name}:{number}" for number, name in enumerate(names)),
        names,
        {**columns, "score": score, "is_kept": kept},
    )
    path = tmp_path_factory.mktemp("pages") / "full.html"
    write_page(view_of(table), path, title="Many")
    return path


def test_two_thousand_conversations_are_quick(visit, full):
    page = visit(full)
    shown = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"
    tries = [page.evaluate(shown)]
    while min(tries) >= 3000 and len(tries) < 4:  # where something else holds the processor
        page.reload()
        tries.append(page.evaluate(shown))
    opened = min(tries)
    assert page.inner_text("#totals").startswith("2,000 of 2,000 conversations, 400,000 of 400,000 tokens")
    assert page.locator(".option").count() < 60
    slide = """async step => {
      const slider = document.getElementById('slider'), start = performance.now();
      slider.value = step;
      slider.dispatchEvent(new Event('input', {bubbles: true}));
      await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
      return performance.now() - start;
    }"""
    taken = sorted(page.evaluate(slide, step) for step in range(100, 1000, 60))
    page.select_option("#sort", "share")
    sorting = sorted(page.evaluate(slide, step) for step in range(100, 1000, 60))
    print(f"{full.stat().st_size / 2**20:.1f} MiB opened in {opened:.0f} ms")
    print(f"slider {statistics.median(taken):.0f} ms, at most {max(taken):.0f}; where it sorts {max(sorting):.0f}")
    assert opened < 3000
    # A third, so that the page is what is measured and not what else the machine does.
    assert taken[len(taken) // 3] < 100
    assert sorting[len(sorting) // 3] < 100


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, {"width": 1000, "height": 800}, PHONE], ids=["wide", "middle", "phone"])
def test_axe_finds_no_serious_fault(visit, serious_faults, one, two, scheme, viewport):
    for path, fragment in ((one, "#t=30"), (two, "#by=score&k=0.4&t=30")):
        page = visit(path, fragment, viewport=viewport, color_scheme=scheme)
        assert serious_faults(page) == []
        page.click("#help-button")
        assert serious_faults(page) == []
