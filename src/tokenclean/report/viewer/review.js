"use strict";
// Decisions on spans of the viewer's text: taken here, sent to a review's server or saved as a file.
globalThis.tokencleanReview = (viewer) => {
  const { page, base128, $, element, visible, say, whole, plural, tokenStart, opened } = viewer;
  const given = page.review;
  const isServed = document.body.dataset.review === "served";
  const tokens = tokenStart[page.ids.length];
  const messages = Int32Array.from(base128(given.messages, tokens), (number) => number + given.firstMessage);
  const starts = base128(given.starts, tokens);
  const sizes = base128(given.sizes, tokens);
  const NO_PLACE = given.firstMessage, OF_TOKENS = given.tokensMessage;
  const numberOf = new Map(given.ids.map((id, c) => [id, c]));
  const queue = given.queue.map(([c, first, behind, reason]) => ({ c, first, behind, reason: given.reasons[reason] }));
  const queueOf = new Map();
  for (const one of queue) {
    if (!queueOf.has(one.c)) queueOf.set(one.c, []);
    queueOf.get(one.c).push(one);
  }
  const placeOf = new Map([...queueOf.keys()].map((c, place) => [c, place]));

  let span = null; // the viewer's spans, from and to (inclusive), that a decision will take
  let suggestion = -1; // the place in the queue that was last gone to
  let isMoving = false; // a selection made here, which does not start a new span

  const who = () => $("who").value.trim();

  // ---- decisions ----

  const decisions = []; // as in the file, in its order, those of one id once
  const known = new Set(), undone = new Set();
  const ofRow = new Map(); // conversation -> its decisions; phrases belong to all
  const phrases = [];
  let painted = new Map();
  let read = 0; // bytes of the file
  let unsaved = [];

  const adopt = (line) => {
    const decision = JSON.parse(line);
    if (decision.kind === "undo") undone.add(decision.undoes);
    if (known.has(decision.decision)) return;
    known.add(decision.decision);
    decision.order = decisions.push(decision);
    if (decision.kind === "drop_everywhere") phrases.push(decision);
    const c = numberOf.get(decision.id);
    if (c === undefined) return;
    if (!ofRow.has(c)) ofRow.set(c, []);
    ofRow.get(c).push(decision);
  };

  const isInForce = (decision) => decision.kind !== "undo" && !undone.has(decision.decision);

  const forget = () => {
    for (const list of [decisions, phrases]) list.length = 0;
    for (const set of [known, undone, ofRow]) set.clear();
  };

  // ---- characters, which the file counts in code points ----

  const answers = new Map();
  const answerOf = (c, message) => {
    const key = `${c} ${message}`;
    if (!answers.has(key)) {
      const content = given.answers[c][message];
      const points = /[\ud800-\udfff]/.test(content) ? Array.from(content) : null;
      answers.set(key, { content, points, length: points ? points.length : content.length });
    }
    return answers.get(key);
  };
  const slice = ({ content, points }, start, end) =>
    points ? points.slice(start, end).join("") : content.slice(start, end);

  const LETTER = `(?:(?![${given.unspaced}])[\\p{L}\\p{N}_])`; // as review.phrases.find_phrase
  const isLetter = (sign) => new RegExp(LETTER, "u").test(sign);
  const occurrences = (phrase, { content, points }) => {
    const signs = Array.from(phrase);
    const front = isLetter(signs[0]) ? `(?<!${LETTER})` : "";
    const behind = isLetter(signs[signs.length - 1]) ? `(?!${LETTER})` : "";
    const literal = phrase.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
    const found = [];
    for (const match of content.matchAll(new RegExp(front + literal + behind, "gu"))) {
      const start = points ? Array.from(content.slice(0, match.index)).length : match.index;
      found.push([start, start + signs.length]);
    }
    return found;
  };

  // What is decided on each token of a conversation, as the file's reader places it: later decisions replace earlier
  // ones character by character, and a token takes the smallest weight that it touches. By me alone for `mine`.
  const paint = (c) => {
    const name = who();
    if (painted.get(c)?.name === name) return painted.get(c);
    const first = tokenStart[c], count = tokenStart[c + 1] - first;
    const weights = new Float32Array(count).fill(NaN), by = new Array(count).fill(null);
    const mine = new Uint8Array(count);
    const result = { name, weights, by, mine };
    painted.set(c, result);
    const own = (ofRow.get(c) ?? []).filter(isInForce);
    const everywhere = phrases.filter(
      (one) => isInForce(one) && Object.values(given.answers[c]).some((content) => content.includes(one.phrase)),
    );
    if (!own.length && !everywhere.length) return result;
    const inOrder = [...own, ...everywhere].sort((a, b) => a.order - b.order);
    const boards = new Map();
    for (let t = first; t < first + count; t++) {
      const message = messages[t];
      if (message === NO_PLACE || boards.has(message)) continue;
      const length = message === OF_TOKENS ? count : answerOf(c, message).length + 1;
      boards.set(message, { of: new Array(length).fill(null), mine: new Uint8Array(length) });
    }
    for (const decision of inOrder) {
      for (const [message, board] of boards) {
        for (const [start, end] of rangesOf(decision, c, message)) {
          board.of.fill(decision, start, end);
          if (decision.who === name) board.mine.fill(1, start, end);
        }
      }
    }
    for (let i = 0; i < count; i++) {
      const board = boards.get(messages[first + i]);
      if (!board) continue;
      const start = starts[first + i], end = start + sizes[first + i];
      mine[i] = end > start ? 1 : 0;
      for (let at = start; at < end; at++) {
        const decision = board.of[at];
        if (decision && !(weights[i] <= weightOf(decision))) {
          weights[i] = weightOf(decision);
          by[i] = decision;
        }
        if (!board.mine[at]) mine[i] = 0;
      }
    }
    return result;
  };

  const weightOf = (decision) => (decision.kind === "drop_everywhere" ? 0 : decision.weight);

  const rangesOf = (decision, c, message) => {
    if (decision.kind === "drop_everywhere") {
      return message === OF_TOKENS ? [] : occurrences(decision.phrase, answerOf(c, message));
    }
    if (message === OF_TOKENS) return "token_start" in decision ? [[decision.token_start, decision.token_end]] : [];
    if (decision.message !== message) return [];
    const isThere = slice(answerOf(c, message), decision.start, decision.end) === decision.text;
    return isThere ? [[decision.start, decision.end]] : [];
  };

  const isDone = ({ c, first, behind }) => {
    const { mine } = paint(c);
    for (let t = first; t < behind; t++) if (!mine[t]) return false;
    return true;
  };

  // ---- what is shown ----

  const describe = (decision) =>
    `${decision.kind === "weight" ? `weight ${decision.weight}` : decision.kind.replace("_", " ")} by ${visible(decision.who)}`;

  const showProgress = () => {
    const done = queue.filter(isDone).length;
    const people = new Set(decisions.map((decision) => decision.who));
    const others = people.size > 1 ? ` ${people.size} people have decided.` : "";
    $("review-progress").textContent = `${whole(done)} of ${plural(queue.length, "suggested span")} reviewed by you.${others}`;
  };

  const showSpan = () => {
    const words = [];
    if (span) {
      const { c } = opened();
      for (const part of partsOf(span)) {
        const place =
          part.message === OF_TOKENS
            ? `tokens ${part.start} to ${part.end}`
            : `message ${part.message}, characters ${part.start} to ${part.end}`;
        words.push(place);
      }
      const [first, behind] = tokensOf(span);
      const one = queue[suggestion];
      if (one && one.c === c && one.first < behind && one.behind > first) words.push(`suggested: ${one.reason}`);
      if (!words.length) words.push("no token of an answer");
    }
    $("review-span").textContent = span ? `Span: ${words.join("; ")}.` : "Press n for the next suggestion, or choose a token.";
  };

  const notify = (words, isFault = false) => {
    $("review-said").textContent = visible(words);
    $("review-said").classList.toggle("fault", isFault);
  };

  const refresh = () => {
    painted = new Map();
    viewer.recolour();
    viewer.showList();
    viewer.showFacts();
    showProgress();
    tickPhrases();
    $("undo").disabled = !lastOwn();
    if ($("save")) $("save").textContent = unsaved.length ? `Save ${plural(unsaved.length, "decision")}` : "Save decisions";
  };

  // ---- the span ----

  const tokensOf = ({ from, to }) => {
    const { c, tokenAt } = opened();
    return [tokenAt[from] - tokenStart[c], tokenAt[to + 1] - tokenStart[c]];
  };

  // The span in the file's terms: one part for each message that it touches.
  const partsOf = (chosen) => {
    const { c } = opened();
    const [first, behind] = tokensOf(chosen);
    const parts = new Map();
    for (let t = tokenStart[c] + first; t < tokenStart[c] + behind; t++) {
      const message = messages[t], end = starts[t] + sizes[t];
      if (message === NO_PLACE || !sizes[t]) continue;
      const part = parts.get(message) ?? { message, start: starts[t], end };
      parts.set(message, { message, start: Math.min(part.start, starts[t]), end: Math.max(part.end, end) });
    }
    return [...parts.values()];
  };

  const choose = (from, to) => {
    span = { from, to };
    isMoving = true;
    viewer.select(0, from, { focus: true });
    isMoving = false;
    viewer.recolour();
    showSpan();
  };

  const move = (startBy, endBy) => {
    if (!span) return;
    const from = span.from + startBy, to = span.to + endBy;
    if (from < 0 || to >= opened().spans || from > to) return;
    choose(from, to);
    say($("review-span").textContent);
  };

  const goTo = (place) => {
    const one = queue[place];
    suggestion = place;
    if (opened().c !== one.c) viewer.openConversation(one.c, { scroll: true });
    const { c, tokenAt } = opened();
    const at = (token) => {
      let low = 0, high = tokenAt.length - 2;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (tokenAt[middle] <= tokenStart[c] + token) low = middle;
        else high = middle - 1;
      }
      return low;
    };
    choose(at(one.first), at(one.behind - 1));
    say(`${one.reason}. ${$("review-span").textContent}`);
  };

  const next = () => {
    for (let step = 1; step <= queue.length; step++) {
      const place = (suggestion + step) % queue.length;
      if (!isDone(queue[place])) return goTo(place);
    }
    notify(queue.length ? "You have reviewed every suggestion." : "Nothing is suggested.");
  };

  const previous = () => {
    if (suggestion > 0) goTo(suggestion - 1);
  };

  // ---- deciding ----

  const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

  const decide = async (kind, weight) => {
    if (!span) return notify("Choose a token first, or press n for the next suggestion.", true);
    const { c } = opened();
    const row = { id: given.ids[c], original_id: given.originalIds[c] };
    const taken = partsOf(span).map(({ message, start, end }) => {
      const common = { kind, decision: newId(), who: who(), ...row };
      if (message === OF_TOKENS) {
        const ids = [];
        for (let t = start; t < end; t++) ids.push(page.pieceIds[viewer.pieceOf[tokenStart[c] + t]]);
        return { ...common, token_start: start, token_end: end, weight, input_ids: ids };
      }
      return { ...common, message, start, end, weight, text: slice(answerOf(c, message), start, end) };
    });
    if (!taken.length) return notify("No token of an answer is in this span, so nothing can be decided on it.", true);
    const one = queue[suggestion];
    const isSuggested = one && one.c === c;
    if ((await submit(taken)) && isSuggested && isDone(one)) next();
  };

  const weigh = () => {
    const text = $("weight").value, weight = Number(text);
    if (text === "" || !(weight >= 0 && weight <= 1)) return notify("A weight is a number from 0 to 1.", true);
    document.activeElement.blur();
    return decide("weight", weight);
  };

  const lastOwn = () => decisions.findLast((decision) => decision.who === who() && isInForce(decision));

  const undo = async () => {
    const last = lastOwn();
    if (!last) return notify("There is no decision of yours to take back.");
    if (await submit([{ kind: "undo", decision: newId(), who: who(), undoes: last.decision }])) {
      notify(`Taken back: ${describe(last)}.`);
    }
  };

  let sending = Promise.resolve();
  const submit = (taken) => {
    if (!who()) {
      notify("Give your name first, so that others know whose decision it is.", true);
      $("who").focus();
      return Promise.resolve(false);
    }
    const sent = sending.then(() => (isServed ? send(taken) : keep(taken)));
    sending = sent.catch(() => {});
    return sent;
  };

  const keep = async (taken) => {
    const when = new Date().toISOString().replace(/\.\d+Z$/, "Z");
    const lines = taken.map((decision) => JSON.stringify({ ...decision, when }));
    lines.forEach(adopt);
    unsaved.push(...lines);
    notify(taken.map(describe).join("; "));
    refresh();
    return true;
  };

  const save = () => {
    if (!unsaved.length) return notify("There is no decision to save.");
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([unsaved.map((line) => `${line}\n`).join("")], { type: "application/jsonl" }));
    link.download = "review.jsonl";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    notify(`${plural(unsaved.length, "decision")} saved; append the file to the run's review.jsonl.`);
    unsaved = [];
    refresh();
  };

  // ---- the server ----

  const token = new URLSearchParams(location.search).get("token");

  const ask = async (place, options = {}) => {
    const answer = await fetch(place, { ...options, headers: { "X-Tokenclean-Token": token, "Content-Type": "application/json" } });
    const text = await answer.text();
    if (answer.ok) return JSON.parse(text);
    let reason = text;
    try {
      reason = JSON.parse(text).error;
    } catch {
      // a refusal is plain text
    }
    throw new Error(reason);
  };

  const take = ({ start, end, lines, faults }) => {
    if (start !== read) forget(); // the file is another one, and all of it was sent
    read = end;
    lines.forEach(adopt);
    if (faults.length) notify(faults.join("; "), true);
    refresh();
  };

  const send = async (taken) => {
    try {
      take(await ask("decisions", { method: "POST", body: JSON.stringify({ from: read, decisions: taken }) }));
      notify(taken.map(describe).join("; "));
      return true;
    } catch (error) {
      notify(`Not stored: ${error.message}`, true);
      return false;
    }
  };

  const fetchNew = () => {
    sending = sending.then(async () => {
      try {
        take(await ask(`decisions?from=${read}`));
      } catch (error) {
        notify(`The server does not answer: ${error.message}`, true);
      }
    });
    return sending;
  };

  const showAgreement = async () => {
    if (!$("agreement-fold").open) return;
    try {
      const { pairs } = await ask("agreement");
      const lines = pairs.length ? pairs : ["Two people have to decide before they can agree."];
      $("agreement").replaceChildren(...lines.map((line) => element("p", "", visible(line))));
    } catch (error) {
      notify(`The server does not answer: ${error.message}`, true);
    }
  };

  // ---- phrases ----

  let boxes = [];

  const buildPhrases = () => {
    if (boxes.length || !$("phrases-fold").open) return;
    const parts = [];
    for (const group of given.phrases) {
      parts.push(element("h3", "", `${group.place}, ${plural(group.phrases[0][1], "row")}`));
      for (const [phrase, rows] of group.phrases) {
        const label = element("label"), box = element("input");
        box.type = "checkbox";
        const text = element("bdi", "", visible(phrase));
        label.append(box, text, element("span", "note", ` ${whole(rows)}`));
        box.addEventListener("change", () => drop(phrase, box.checked));
        boxes.push({ phrase, box });
        parts.push(label);
      }
    }
    const help = given.phrases.length
      ? "Tick a phrase to drop every occurrence of it in all answers of the pool."
      : "No phrase is repeated in several rows.";
    $("phrases").replaceChildren(element("p", "note", help), ...parts);
    tickPhrases();
  };

  const tickPhrases = () => {
    const dropped = new Set(phrases.filter(isInForce).map((decision) => decision.phrase));
    for (const { phrase, box } of boxes) box.checked = dropped.has(phrase);
  };

  const drop = async (phrase, isDropped) => {
    const signed = () => ({ decision: newId(), who: who() });
    const taken = isDropped
      ? [{ kind: "drop_everywhere", ...signed(), phrase }]
      : phrases
          .filter((decision) => decision.phrase === phrase && isInForce(decision))
          .map((decision) => ({ kind: "undo", ...signed(), undoes: decision.decision }));
    await submit(taken);
    tickPhrases();
  };

  // ---- what the viewer asks ----

  const facts = (c) => {
    const own = queueOf.get(c);
    return own ? [`${own.filter(isDone).length} of ${own.length} reviewed`] : [];
  };

  const className = (s) => {
    const { c, tokenAt } = opened();
    const { weights } = paint(c);
    let name = span && s >= span.from && s <= span.to ? " chosen" : "";
    let lowest = NaN;
    for (let t = tokenAt[s] - tokenStart[c]; t < tokenAt[s + 1] - tokenStart[c]; t++) {
      if (!(lowest <= weights[t]) && !Number.isNaN(weights[t])) lowest = weights[t];
    }
    if (lowest === 0) name += " reviewed-drop";
    else if (lowest === 1) name += " reviewed-keep";
    else if (lowest > 0) name += " reviewed-weight";
    return name;
  };

  const tokenFacts = (t) => {
    const { c } = opened();
    if (messages[t] === NO_PLACE) return [["review", "not part of an answer's text: cannot be decided"]];
    const decision = paint(c).by[t - tokenStart[c]];
    return decision ? [["review", describe(decision)]] : [];
  };

  const selected = (s) => {
    if (isMoving) return;
    span = { from: s, to: s };
    viewer.recolour();
    showSpan();
  };

  const openedAnother = () => {
    span = null;
    showSpan();
  };

  const start = async (place) => {
    $("who").value = given.who;
    for (const [id, does] of Object.entries({
      keep: () => decide("keep", 1), drop: () => decide("drop", 0), weigh, undo, save,
      "suggestion-next": next, "suggestion-previous": previous,
    })) {
      $(id)?.addEventListener("click", does);
    }
    $("who").addEventListener("change", refresh);
    $("weight").addEventListener("keydown", (event) => {
      if (event.key === "Enter") weigh();
      if (event.key === "Escape") event.target.blur();
    });
    $("phrases-fold").addEventListener("toggle", buildPhrases);
    $("agreement-fold")?.addEventListener("toggle", showAgreement);
    if (isServed) {
      addEventListener("focus", fetchNew);
      await fetchNew();
    } else {
      given.lines.forEach(adopt);
      addEventListener("beforeunload", (event) => { if (unsaved.length) event.preventDefault(); });
    }
    refresh();
    showSpan();
    if (!place.isNamed && queue.length) next();
  };

  const keys = {
    n: next, p: previous, u: undo,
    a: () => decide("keep", 1), d: () => decide("drop", 0),
    w: () => { $("weight").focus(); $("weight").select(); },
    e: () => move(0, 1), E: () => move(0, -1), s: () => move(-1, 0), S: () => move(1, 0),
  };

  return { keys, place: (c) => placeOf.get(c) ?? NaN, facts, className, tokenFacts, selected, opened: openedAnother, start };
};
