"""Reviewing in a browser: by the keyboard alone, with hostile texts, in two tabs, served and from disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from reviewing import page_of, row, signed

from tokenclean.pool.conversation import Conversation, LabelledTokens
from tokenclean.review.decisions import PhraseDecision, SpanDecision, TokenDecision, Undo, in_force
from tokenclean.review.placed import place
from tokenclean.review.review_file import append_decisions, read_review
from tokenclean.review.server import ReviewServer

pytestmark = pytest.mark.slow

HOSTILE = [
    "</script><script>alert(1)</script> and <!-- <b>more",
    "left \u202eright\u202c and \u2066alone\u2069 \x00\x1b[31m\x7f end",
    "a family 👨‍👩‍👧‍👦, a flag 🇩🇪, e\u0301 and 水は नमस्ते 𝒳 here",
    "\ufeff zero \u200b width \u2028 and \u2029 breaks",
]


def rows_of(count: int = 6) -> list[Conversation]:
    return [
        row(f"Sure! Here is the answer that you want. Number {n} keeps the water cool.", id=f"rows:{n}:abc")
        for n in range(count)
    ]


@pytest.fixture
def review(serve, tmp_path: Path):
    """A function that serves rows and gives the server's link and its file."""

    def started(conversations, **options) -> tuple[str, Path]:
        path = tmp_path / "review.jsonl"
        server = ReviewServer(page_of(conversations, is_served=True, **options), path, conversations)
        return server.link(serve(server)), path

    return started


def press(page, *keys: str) -> str:
    """Press keys, each after what the one before has started; returns what the page says."""
    for key in keys:
        page.keyboard.press(key)
        page.wait_for_timeout(120)
    return page.inner_text("#review-said")


def decisions_in(path: Path):
    found = read_review(path)
    assert found.faults == ()
    return found.decisions


def test_a_review_by_the_keyboard_alone(visit, review):
    rows = rows_of()
    link, path = review(rows)
    page = visit(link)
    assert page.inner_text("#review-progress").startswith("0 of ")
    assert "suggested: dropped" in page.inner_text("#review-span")
    heading = page.inner_text("#heading")
    assert press(page, "d") == "drop by Ann"
    [first] = decisions_in(path)
    assert isinstance(first, SpanDecision)
    assert (first.kind, first.id, first.weight, first.message) == ("drop", heading, 0, 1)
    answer = next(one for one in rows if one.id == first.id).turns[1].content
    assert first.text == answer[first.start : first.end]
    assert page.inner_text("#review-progress").startswith("1 of ")
    assert page.locator(".reviewed-drop").count() > 0

    span = page.inner_text("#review-span")
    press(page, "e")
    assert page.inner_text("#review-span") != span
    press(page, "E")
    assert page.inner_text("#review-span") == span
    press(page, "s", "S", "e")
    assert press(page, "a") == "keep by Ann"
    press(page, "n", "w")
    page.keyboard.type("0.25")
    assert press(page, "Enter") == "weight 0.25 by Ann"
    kinds = [(one.kind, one.weight) for one in decisions_in(path)]
    assert kinds == [("drop", 0), ("keep", 1), ("weight", 0.25)]
    assert press(page, "u") == "Taken back: weight 0.25 by Ann."
    assert isinstance(decisions_in(path)[-1], Undo)
    assert len(in_force(decisions_in(path))) == 2
    assert press(page, "u").startswith("Taken back: keep")
    assert press(page, "u").startswith("Taken back: drop")
    assert page.is_disabled("#undo")
    assert page.inner_text("#review-progress").startswith("0 of ")
    assert place(in_force(decisions_in(path)), rows).placed == 0

    press(page, "p", "j", "k")
    page.keyboard.press("?")
    assert "take back your last decision" in page.inner_text("#help")


def test_reviewing_every_suggestion_ends(visit, review):
    rows = rows_of(2)
    link, path = review(rows)
    page = visit(link)
    total = int(page.inner_text("#review-progress").split(" of ")[1].split()[0])
    for _ in range(total):
        press(page, "d")
    assert page.inner_text("#review-progress").startswith(f"{total} of {total} ")
    assert press(page, "n") == "You have reviewed every suggestion."
    assert place(in_force(decisions_in(path)), rows).unplaced == ()
    assert page.inner_text(".option .facts >> nth=0").endswith("reviewed")


def test_the_end_token_has_its_own_place(visit, review):
    rows = rows_of(1)
    link, path = review(rows)
    page = visit(link)
    page.click("#text .t >> text='</s>'")
    press(page, "d")
    [decision] = decisions_in(path)
    length = len(rows[0].turns[1].content)
    assert (decision.start, decision.end, decision.text) == (length, length + 1, "")
    page.click("#text .t >> nth=0")
    assert "no token of an answer" in page.inner_text("#review-span")
    assert "nothing can be decided" in press(page, "d")
    assert len(decisions_in(path)) == 1


def test_hostile_texts_come_back_as_they_are(visit, review):
    rows = [row(text, id=f"<img src=x onerror=alert({n})>:{n}:x") for n, text in enumerate(HOSTILE)]
    link, path = review(rows, who="</script>\u202e王 <b>")
    page = visit(link)
    for number, text in enumerate(HOSTILE):
        page.evaluate(f"location.hash = 'c=' + encodeURIComponent({json.dumps(rows[number].id)})")
        page.wait_for_timeout(400)
        page.locator("#text .t").nth(0).click()
        page.keyboard.press("End")
        page.keyboard.press("ArrowLeft")
        for _ in range(200):
            if "characters 0 to" in page.inner_text("#review-span"):
                break
            page.keyboard.press("s")
        assert press(page, "d").startswith("drop by"), page.inner_text("#review-span")
        decision = decisions_in(path)[-1]
        assert (decision.id, decision.start) == (rows[number].id, 0)
        assert decision.text == text[: decision.end]
        assert decision.end >= len(text) - 8
    assert decision.signature.who == "</script>\u202e王 <b>"
    assert page.locator("main b, main script, main img, aside b, aside img").count() == 0
    placed = place(in_force(decisions_in(path)), rows)
    assert (placed.placed, placed.unplaced) == (4, ())
    page.evaluate(f"location.hash = 'c=' + encodeURIComponent({json.dumps(rows[2].id)})")
    page.wait_for_timeout(400)
    dropped = page.eval_on_selector_all("#text .reviewed-drop", "all => all.map(one => one.textContent).join('')")
    assert dropped == decisions_in(path)[2].text


def test_a_phrase_is_dropped_everywhere_and_taken_back(visit, review):
    rows = rows_of()
    link, path = review(rows)
    page = visit(link)
    page.click("#phrases-fold summary")
    box = page.get_by_label("Sure! Here is the answer that you want.")
    box.check()
    page.wait_for_timeout(300)
    [decision] = decisions_in(path)
    assert isinstance(decision, PhraseDecision)
    assert decision.phrase == "Sure! Here is the answer that you want."
    assert "drop everywhere by Ann" in page.inner_text("#review-said")
    dropped = page.eval_on_selector_all("#text .reviewed-drop", "all => all.map(one => one.textContent).join('')")
    assert dropped.strip() == decision.phrase
    assert place([decision], rows).rows == list(range(6))
    box.uncheck()
    page.wait_for_timeout(300)
    assert in_force(decisions_in(path)) == []
    assert page.locator("#text .reviewed-drop").count() == 0


def test_a_row_without_text_takes_token_positions(visit, review):
    ids = np.array([65, 66, 67, 68, 69])
    of = Conversation("tokens:0:x", "tokens", (), "tokens", tokens=LabelledTokens(ids, np.arange(5) > 0))
    link, path = review([of])
    page = visit(link)
    page.click("#text .t >> nth=2")
    press(page, "e", "d")
    [decision] = decisions_in(path)
    assert isinstance(decision, TokenDecision)
    assert (decision.token_start, decision.token_end, decision.input_ids) == (2, 4, (67, 68))
    assert "tokens 2 to 4" in page.inner_text("#review-span") or page.inner_text("#review-span")
    assert page.locator(".reviewed-drop").count() == 2


def test_two_tabs_see_each_other_and_agree_or_not(visit, review):
    rows = rows_of(2)
    link, path = review(rows)
    ann, bob = visit(link), visit(link)
    bob.fill("#who", "Bob")
    bob.locator("#who").blur()
    press(ann, "d")
    bob.evaluate("dispatchEvent(new Event('focus'))")
    bob.wait_for_timeout(300)
    assert bob.inner_text("#review-progress").startswith("0 of ")  # by Bob
    bob.evaluate(f"location.hash = 'c=' + encodeURIComponent({json.dumps(decisions_in(path)[0].id)})")
    bob.wait_for_timeout(400)
    assert bob.locator(".reviewed-drop").count() > 0
    bob.click("#text .reviewed-drop >> nth=0")
    assert "drop by Ann" in bob.inner_text("#token-facts")
    press(bob, "a")
    ann.wait_for_timeout(100)
    press(ann, "n", "d")
    assert [one.signature.who for one in decisions_in(path)] == ["Ann", "Bob", "Ann"]
    assert "2 people have decided" in ann.inner_text("#review-progress")
    ann.click("#agreement-fold summary")
    ann.wait_for_timeout(300)
    assert ann.inner_text("#agreement").startswith("Ann and Bob: agree on ")
    assert "Cohen's kappa" in ann.inner_text("#agreement")
    bob.fill("#who", " ")
    assert "Give your name first" in press(bob, "Tab") + (bob.click("#drop") or "") + bob.inner_text("#review-said")
    assert len(decisions_in(path)) == 3


def test_another_site_reads_and_writes_nothing(visit, review, serve, browser, tmp_path):
    link, path = review(rows_of(1))
    address, token = link.split("?token=")
    context = browser.new_context()
    page = context.new_page()
    evil = ReviewServer("<!doctype html><title>evil</title>", tmp_path / "other.jsonl", [])
    page.goto(evil.link(serve(evil)))
    tried = page.evaluate(
        """async ([address, token]) => {
          const said = [];
          for (const options of [
            {}, {mode: 'no-cors'}, {method: 'POST', body: '{}'}, {method: 'POST', mode: 'no-cors', body: '{}'},
            {headers: {'X-Tokenclean-Token': token}},
          ]) {
            try {
              const answer = await fetch(address + 'decisions', options);
              said.push(`${answer.type} ${answer.status}`);
            } catch { said.push('refused'); }
          }
          return said;
        }""",
        [address, token],
    )
    assert all(one in ("refused", "opaque 0") for one in tried)
    context.close()
    assert not path.exists()


def test_a_page_that_the_server_left_says_that_nothing_is_stored(browser, review):
    link, path = review(rows_of(1))
    page = browser.new_page()
    page.goto(link)
    page.wait_for_timeout(500)
    page.route("**/decisions", lambda route: route.abort())
    assert press(page, "d").startswith("Not stored: ")
    assert page.locator("#review-said.fault").count() == 1
    assert page.locator(".reviewed-drop").count() == 0
    page.unroute("**/decisions")
    press(page, "d")
    assert len(decisions_in(path)) == 1
    page.close()


def test_a_page_on_disk_saves_its_decisions_as_a_file(visit, tmp_path):
    rows = rows_of()
    page_path = tmp_path / "page.html"
    page_path.write_text(page_of(rows, is_served=False, who="Eve"), encoding="utf-8")
    page = visit(page_path.as_uri(), accept_downloads=True)
    press(page, "d", "a")
    page.click("#phrases-fold summary")
    page.get_by_label("Sure! Here is the answer that you want.").check()
    page.wait_for_timeout(200)
    press(page, "u", "u")
    assert page.inner_text("#save") == "Save 5 decisions"
    with page.expect_download() as saved:
        page.click("#save")
    assert saved.value.suggested_filename == "review.jsonl"
    saved.value.save_as(tmp_path / "review.jsonl")
    found = decisions_in(tmp_path / "review.jsonl")
    assert [one.kind for one in found] == ["drop", "keep", "drop_everywhere", "undo", "undo"]
    assert {one.signature.who for one in found} == {"Eve"}
    assert place(in_force(found), rows).placed == 1
    assert page.inner_text("#save") == "Save decisions"
    assert page.locator("#agreement-fold").count() == 0


def test_two_thousand_conversations_stay_usable(visit, review):
    rows = [row(f"Number {n}. " + "keep the water of a garden cool. " * 8, id=f"rows:{n}:abc") for n in range(2_000)]
    link, path = review(rows)
    page = visit(link)
    assert page.inner_text("#totals").startswith("2,000 of 2,000 conversations")
    assert page.locator(".option").count() < 60
    for _ in range(3):
        press(page, "d")
    assert len(decisions_in(path)) == 3
    assert page.inner_text("#review-progress").startswith("3 of 1,000 ")
    took = page.evaluate(
        """async () => {
          const start = performance.now();
          document.getElementById('suggestion-next').click();
          await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
          return performance.now() - start;
        }"""
    )
    print(f"next suggestion in {took:.0f} ms, page of {len(page.content()) / 2**20:.1f} MiB")


def test_a_file_with_a_torn_line_is_read_on_and_written_to(visit, review):
    rows = rows_of(1)
    link, path = review(rows)
    append_decisions(path, [SpanDecision(signed("Bob"), "drop", rows[0].id, "", 1, 0, 5, 0.0, "Sure!")])
    with path.open("ab") as file:
        file.write(b'{"kind": "drop", "who": "Bo')
    page = visit(link)
    press(page, "d")
    found = read_review(path)
    assert [one.signature.who for one in found.decisions] == ["Bob", "Ann"]
    assert len(found.faults) == 1
    assert "left out" in page.inner_text("#review-said") or page.locator(".reviewed-drop").count() > 0


@pytest.mark.parametrize("width", [360, 390, 800, 1100])
def test_narrow_screens_scroll_downwards_only(visit, review, width):
    link, _ = review(rows_of())
    page = visit(link, viewport={"width": width, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.is_visible("#drop")


ON_SCREEN = """selectors => selectors.map(selector => {
  const box = document.querySelector(selector).getBoundingClientRect();
  const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  return Boolean(top?.closest(selector));
})"""


def test_on_a_phone_a_suggestion_and_its_buttons_are_on_the_screen_together(visit, review):
    rows = [row("Keep the water of a garden cool. " * 30, id=f"rows:{n}:abc") for n in range(3)]
    link, path = review(rows, longest=1_500)
    page = visit(link, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    for count in range(1, 9):
        shown = ["#text .chosen", "#keep", "#drop", "#suggestion-next", "#undo", "#review-said"]
        assert page.evaluate(ON_SCREEN, shown[: 5 + (count > 1)]) == [True] * (5 + (count > 1))
        page.tap("#drop")
        page.wait_for_timeout(150)
        assert len(decisions_in(path)) == count


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1000, 1400])
def test_axe_finds_no_serious_fault(visit, review, serious_faults, width, scheme):
    link, _ = review(rows_of())
    page = visit(link, viewport={"width": width, "height": 844}, color_scheme=scheme)
    assert serious_faults(page) == []
    page.click("#phrases-fold summary")
    page.click("#agreement-fold summary")
    press(page, "d", "a", "w")
    page.keyboard.type("2")
    assert "from 0 to 1" in press(page, "Enter")
    assert page.locator("#review-said.fault").count() == 1
    assert serious_faults(page) == []
