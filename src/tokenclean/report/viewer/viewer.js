"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const page = JSON.parse($("data").textContent);
  const NOT_RANKED = 0xffffffff;
  const VALUE_NAMES = { score: "score", base_loss: "base loss", previous_loss: "loss of the model before", reference_loss: "reference loss", weight: "weight" };

  // ---- the packed data ----

  const bytes = (text) => {
    const raw = atob(text);
    const out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  };
  const uint32 = (text) => new Uint32Array(bytes(text).buffer);
  const float32 = (text) => new Float32Array(bytes(text).buffer);

  const bits = (text, count) => {
    const packed = bytes(text);
    const out = new Uint8Array(count);
    for (let i = 0; i < count; i++) out[i] = (packed[i >> 3] >> (i & 7)) & 1;
    return out;
  };

  const base128 = (text, count) => {
    const packed = bytes(text);
    const out = new Uint32Array(count);
    let at = 0;
    for (let i = 0; i < count; i++) {
      let shift = 1, byte;
      do {
        byte = packed[at++];
        out[i] += (byte & 127) * shift;
        shift *= 128;
      } while (byte & 128);
    }
    return out;
  };

  const halves = ({ half, power }) => {
    const packed = new Uint16Array(bytes(half).buffer);
    const out = new Float32Array(packed.length);
    for (let i = 0; i < packed.length; i++) {
      const exponent = (packed[i] >> 10) & 31, fraction = packed[i] & 1023;
      let value = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : (fraction / 1024) * 2 ** -14;
      if (exponent === 31) value = NaN;
      out[i] = (packed[i] & 0x8000 ? -value : value) * 2 ** power;
    }
    return out;
  };

  const conversations = page.ids.length;
  const tokenCounts = uint32(page.counts);
  const tokenStart = new Uint32Array(conversations + 1);
  for (let c = 0; c < conversations; c++) tokenStart[c + 1] = tokenStart[c] + tokenCounts[c];
  const tokens = tokenStart[conversations];
  const lengths = base128(page.lengths, tokens);
  const pieceOf = uint32(page.pieceOf);

  const tables = page.tables.map((stored) => {
    const isResponse = bits(stored.response, tokens);
    const responseAt = new Int32Array(tokens).fill(-1);
    const responseStart = new Uint32Array(conversations + 1);
    let count = 0;
    for (let c = 0; c < conversations; c++) {
      for (let t = tokenStart[c]; t < tokenStart[c + 1]; t++) if (isResponse[t]) responseAt[t] = count++;
      responseStart[c + 1] = count;
    }
    const values = {};
    for (const [name, packed] of Object.entries(stored.values)) values[name] = halves(packed);
    const table = {
      name: stored.name, notes: stored.notes, done: stored.done, noise: stored.noise, ranked: stored.ranked, shares: stored.shares,
      responseAt, responseStart, values,
      own: stored.kept === null ? null : bits(stored.kept, count),
      ranks: stored.ranks === null ? null : uint32(stored.ranks),
      kept: new Uint8Array(count), // labels as they are shown now
      keptIn: new Uint32Array(conversations),
      meanScore: new Float32Array(conversations).fill(NaN),
    };
    if (table.ranks) {
      table.cuts = uint32(stored.shares.cuts);
      table.thresholds = float32(stored.shares.thresholds);
      for (let c = 0; c < conversations; c++) {
        let sum = 0, scored = 0;
        for (let r = responseStart[c]; r < responseStart[c + 1]; r++) {
          if (table.ranks[r] !== NOT_RANKED) { sum += values.score[r]; scored++; }
        }
        if (scored) table.meanScore[c] = sum / scored;
      }
    }
    return table;
  });
  const isDiff = tables.length > 1;
  const hasSlider = tables.some((table) => table.ranks);
  const hasLabels = tables.every((table) => table.own || !table.ranks);
  const differingIn = new Uint32Array(conversations);

  // Where the slider starts, and whether the page shows a cut there or the tables' own labels.
  const startStep = page.tables.find((_, i) => tables[i].ranks)?.startStep ?? page.steps;
  const startsRecut = page.tables.some((table, i) => tables[i].ranks && table.startsRecut);
  const state = {
    current: 0, order: [], selected: { side: 0, span: -1 }, step: startStep, recut: startsRecut, paint: "kept", query: "",
  };

  let review = null; // takes decisions, on a page that is made for it

  // ---- words ----

  const whole = (number) => number.toLocaleString("en");
  const percent = (part, of) => (of ? `${((100 * part) / of).toFixed(1)} %` : "–");
  const decimal = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(3))).replace("-", "−") : "–");
  const plural = (count, word) => `${whole(count)} ${word}${count === 1 ? "" : "s"}`;

  // Controls would be invisible, and some turn the direction of all that follows them.
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;
  const visible = (text) =>
    text.replace(HIDDEN, (sign) => {
      const code = sign.charCodeAt(0);
      if (code < 0x20) return String.fromCharCode(0x2400 + code);
      return code === 0x7f ? "␡" : `‹U+${code.toString(16).toUpperCase().padStart(4, "0")}›`;
    });

  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  // ---- cutting ----

  // The count is that of Python's int(n * p): one product of two doubles, rounded down.
  const cutCount = (table) => Math.floor(table.ranked * (state.step / page.steps));

  const isCut = (table) => table.ranks && (state.recut || !table.own);

  const relabel = () => {
    for (const table of tables) {
      const { kept, own, ranks, responseStart } = table;
      if (isCut(table)) {
        const count = cutCount(table);
        for (let r = 0; r < kept.length; r++) {
          kept[r] = ranks[r] === NOT_RANKED ? (own ? own[r] : 0) : ranks[r] < count ? 1 : 0;
        }
      } else if (own) kept.set(own);
      else kept.fill(1);
      for (let c = 0; c < conversations; c++) {
        let sum = 0;
        for (let r = responseStart[c]; r < responseStart[c + 1]; r++) sum += kept[r];
        table.keptIn[c] = sum;
      }
    }
    if (!isDiff) return;
    for (let c = 0; c < conversations; c++) {
      let sum = 0;
      for (let t = tokenStart[c]; t < tokenStart[c + 1]; t++) if (isKept(tables[0], t) !== isKept(tables[1], t)) sum++;
      differingIn[c] = sum;
    }
  };

  const isKept = (table, token) => table.responseAt[token] >= 0 && table.kept[table.responseAt[token]] === 1;
  const responses = (table, c) => table.responseStart[c + 1] - table.responseStart[c];

  const keptOfSource = (table, s) =>
    isCut(table)
      ? table.cuts[state.step * table.shares.sources.length + s] + table.shares.keptUnranked[s]
      : table.shares.own[s];

  const cutWords = (table) => {
    let kept = 0, total = 0;
    for (let s = 0; s < table.shares.sources.length; s++) {
      kept += keptOfSource(table, s);
      total += table.shares.tokens[s];
    }
    const counted = `${whole(kept)} of ${whole(total)} response tokens of the pool kept (${percent(kept, total)})`;
    if (table.done) return `${counted}: ${table.done}`;
    if (!table.ranks) return `${counted}, ${table.own ? "as in the table, which has" : "from a table with"} no scores to cut by`;
    if (!isCut(table)) return `${counted}, as in the table`;
    const lowest = table.thresholds[state.step];
    const threshold = Number.isFinite(lowest) ? `, scores from ${decimal(lowest)} nats` : "";
    return `${counted}, cut at ${((100 * state.step) / page.steps).toFixed(1)} %${threshold}`;
  };

  const showCut = () => {
    $("cut-status").replaceChildren(
      ...tables.map((table, i) => element("span", "", `${isDiff ? `${"AB"[i]}: ` : ""}${cutWords(table)}. `)),
    );
    if (hasSlider) {
      const share = ((100 * state.step) / page.steps).toFixed(1);
      $("slider").value = state.step;
      $("slider").setAttribute("aria-valuetext", `${share} percent of the pool`);
      if (document.activeElement !== $("percent")) $("percent").value = share;
      $("own").disabled = !state.recut;
    }
    showShares();
  };

  const sourceNames = [...new Set(tables.flatMap((table) => table.shares.sources))];
  const shareCells = new Map();

  const buildShares = () => {
    const line = (name) => {
      const row = element("tr");
      const head = element("th");
      head.scope = "row";
      head.append(element("bdi", "", visible(name)));
      const size = element("td");
      const cells = tables.map(() => element("td", "share"));
      row.append(head, size, ...cells);
      shareCells.set(name, { size, cells });
      return row;
    };
    $("shares").tBodies[0].append(...sourceNames.map(line));
    if (sourceNames.length > 1) $("shares").tFoot.append(line("all"));
    $("shares-caption").textContent = "Response tokens of the whole pool.";
    for (const table of tables) {
      for (const text of table.notes) $("notes").append(element("p", "note", isDiff ? `${table.name}: ${text}` : text));
    }
  };

  const showShares = () => {
    const sums = tables.map(() => [0, 0]);
    const put = (name, i, kept, total) => {
      const { size, cells } = shareCells.get(name);
      if (i === 0 || !size.textContent) size.textContent = whole(total);
      cells[i].textContent = percent(kept, total);
      cells[i].style.setProperty("--share", total ? `${(100 * kept) / total}%` : "0%");
    };
    tables.forEach((table, i) => {
      table.shares.sources.forEach((name, s) => {
        const kept = keptOfSource(table, s), total = table.shares.tokens[s];
        sums[i][0] += kept;
        sums[i][1] += total;
        put(name, i, kept, total);
      });
      if (sourceNames.length > 1) put("all", i, ...sums[i]);
    });
  };

  // ---- colours ----

  // Half-way colours reach the 95th percentile, so that a few extreme tokens do not leave the others pale.
  const limits = {};
  for (const name of Object.keys(VALUE_NAMES)) {
    const sizes = [];
    for (const { values } of tables) {
      if (!values[name]) continue;
      const stride = Math.max(1, Math.floor(values[name].length / 20000));
      for (let r = 0; r < values[name].length; r += stride) {
        if (Number.isFinite(values[name][r])) sizes.push(Math.abs(values[name][r]));
      }
    }
    if (sizes.length) limits[name] = Float64Array.from(sizes).sort()[Math.floor(0.95 * (sizes.length - 1))] || 1;
  }
  const paints = ["kept", ...Object.keys(limits)];

  // A score's sign is the message, so it takes two colours; losses go one way; a weight counts from a half.
  const shadeOf = (value) => {
    if (state.paint === "score") return value / limits.score;
    if (state.paint === "weight") return 2 * value - 1;
    return -value / limits[state.paint];
  };

  const showLegend = () => {
    const part = (className, text) => element("span", `t ${className}`, text);
    const legend = $("legend");
    if (state.paint === "kept") {
      legend.replaceChildren("Tokens: ", part("kept", "kept"), " ", part("dropped", "dropped"), " prompt in grey.");
    } else {
      const isScore = state.paint === "score", isWeight = state.paint === "weight";
      const low = isScore ? `≤ −${decimal(limits.score)}` : "0";
      const high = isWeight ? "1" : `≥ ${decimal(limits[state.paint])}`;
      const scale = element("span", `scale ${isScore || isWeight ? "both" : "one"}`);
      const unit = isWeight ? "" : " nats";
      legend.replaceChildren(
        `${VALUE_NAMES[state.paint]}: ${low} `, scale, ` ${high}${unit}; `, part("dropped", "dropped"), " underlined.",
      );
    }
    if (isDiff) legend.append(" ", part("differs", "differs"), " between A and B.");
    document.body.dataset.paint = state.paint === "kept" ? "kept" : "value";
  };

  // ---- the list ----

  const OPTION_HEIGHT = 56;
  const list = $("list");
  const room = list.appendChild(element("div"));
  room.setAttribute("role", "presentation");

  const noiseWords = (table, c) => (Number.isFinite(table.noise?.[c]) ? [`estimated noise ${percent(table.noise[c], 1)}`] : []);

  const facts = (c) => {
    const shares = tables.map((table) => percent(table.keptIn[c], responses(table, c)));
    const words = [`kept ${shares.join(" / ")}`];
    if (isDiff) words.push(`${whole(differingIn[c])} differ`);
    else if (Number.isFinite(tables[0].meanScore[c])) words.push(`score ${decimal(tables[0].meanScore[c])}`);
    if (!isDiff) words.push(...noiseWords(tables[0], c));
    words.push(plural(tokenCounts[c], "token"));
    if (page.sources.length > 1) words.push(visible(page.sources[page.sourceOf[c]]));
    if (review) words.push(...review.facts(c));
    return words.join(" · ");
  };

  const option = (at) => {
    const c = state.order[at];
    const made = element("div", "option");
    made.id = `option-${c}`;
    made.setAttribute("role", "option");
    made.setAttribute("aria-posinset", at + 1);
    made.setAttribute("aria-setsize", state.order.length);
    made.setAttribute("aria-selected", c === state.current);
    made.style.top = `${at * OPTION_HEIGHT}px`;
    const name = element("span");
    name.append(element("bdi", "", visible(page.ids[c])));
    made.append(name, element("span", "facts", facts(c)));
    made.dataset.conversation = c;
    return made;
  };

  const showList = () => {
    room.style.height = `${state.order.length * OPTION_HEIGHT}px`;
    const first = Math.max(0, Math.floor(list.scrollTop / OPTION_HEIGHT) - 6);
    const behind = Math.min(state.order.length, Math.ceil((list.scrollTop + list.clientHeight) / OPTION_HEIGHT) + 6);
    const places = [];
    for (let at = first; at < behind; at++) places.push(at);
    const chosen = state.order.indexOf(state.current);
    if (chosen >= 0 && (chosen < first || chosen >= behind)) places.push(chosen); // for aria-activedescendant
    room.replaceChildren(...places.map(option));
    if (chosen >= 0) list.setAttribute("aria-activedescendant", `option-${state.current}`);
    else list.removeAttribute("aria-activedescendant");
    $("previous").disabled = chosen <= 0;
    $("next").disabled = !state.order.length || chosen === state.order.length - 1;
  };

  const scrollListToCurrent = () => {
    const at = state.order.indexOf(state.current);
    if (at < 0) return;
    const top = at * OPTION_HEIGHT, height = list.clientHeight;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + OPTION_HEIGHT > list.scrollTop + height) list.scrollTop = top + OPTION_HEIGHT - height;
  };

  let lowered = null; // texts for searching, made at the first search

  const sortValue = {
    place: null,
    share: (c) => (responses(tables[0], c) ? tables[0].keptIn[c] / responses(tables[0], c) : NaN),
    length: (c) => tokenCounts[c],
    score: (c) => tables[0].meanScore[c],
    noise: (c) => tables[0].noise[c] ?? NaN,
    differing: (c) => differingIn[c],
    review: (c) => review.place(c),
  };

  const arrange = () => {
    const query = state.query.toLowerCase();
    if (query && !lowered) lowered = page.texts.map((text, c) => `${page.ids[c]}\n${text}`.toLowerCase());
    const source = $("source").value;
    const found = [];
    for (let c = 0; c < conversations; c++) {
      if (source !== "" && page.sourceOf[c] !== Number(source)) continue;
      if (query && !lowered[c].includes(query)) continue;
      found.push(c);
    }
    const direction = $("descending").checked ? -1 : 1;
    const value = sortValue[$("sort").value];
    if (value) {
      const keys = new Map(found.map((c) => [c, value(c)]));
      found.sort((a, b) => {
        const x = keys.get(a), y = keys.get(b);
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b; // always last
        return direction * (x - y) || a - b;
      });
    } else if (direction < 0) found.reverse();
    state.order = found;
    $("found").textContent =
      found.length === conversations ? `(${whole(conversations)})` : `(${whole(found.length)} of ${whole(conversations)})`;
    showList();
  };

  const filter = () => {
    arrange();
    list.scrollTop = 0;
    showList();
    if (state.order.length && !state.order.includes(state.current)) openConversation(state.order[0]);
    else rehit();
  };

  // ---- the conversation ----

  const text = $("text");
  let shown = null; // the open conversation: its text, spans and blocks

  const BLOCK_SPANS = 300, BLOCK_MOST = 1200;

  const layOut = (c) => {
    const content = page.texts[c];
    const first = tokenStart[c], behind = tokenStart[c + 1];
    const charAt = [0], tokenAt = [first];
    let at = 0;
    for (let t = first; t < behind; t++) {
      if (!lengths[t]) continue;
      at += lengths[t];
      charAt.push(at);
      tokenAt.push(t + 1);
    }
    if (tokenAt.length > 1) tokenAt[tokenAt.length - 1] = behind; // tokens without text at the end
    else if (behind > first) { charAt.push(0); tokenAt.push(behind); }
    const spans = charAt.length - 1;
    const blocks = [];
    let start = 0;
    for (let s = 0; s < spans; s++) {
      const size = s + 1 - start;
      const endsLine = content[charAt[s + 1] - 1] === "\n";
      if (s === spans - 1 || (endsLine && size >= BLOCK_SPANS) || size >= BLOCK_MOST) {
        blocks.push({ start, behind: s + 1, goesOn: !endsLine && s < spans - 1, filled: false, cells: [] });
        start = s + 1;
      }
    }
    return { c, content, charAt, tokenAt, spans, blocks, hits: null };
  };

  const isDiffering = (s) => {
    if (!isDiff) return false;
    for (let t = shown.tokenAt[s]; t < shown.tokenAt[s + 1]; t++) {
      if (isKept(tables[0], t) !== isKept(tables[1], t)) return true;
    }
    return false;
  };

  const labelOf = (table, s) => {
    let kept = 0, dropped = 0, prompt = 0;
    for (let t = shown.tokenAt[s]; t < shown.tokenAt[s + 1]; t++) {
      const r = table.responseAt[t];
      if (r < 0) prompt++;
      else if (table.kept[r]) kept++;
      else dropped++;
    }
    if (kept && (dropped || prompt)) return "mixed";
    return kept ? "kept" : dropped ? "dropped" : "prompt";
  };

  const shadeClass = (table, s) => {
    const values = table.values[state.paint];
    if (!values) return "";
    let sum = 0, count = 0;
    for (let t = shown.tokenAt[s]; t < shown.tokenAt[s + 1]; t++) {
      const r = table.responseAt[t];
      if (r >= 0 && Number.isFinite(values[r])) { sum += values[r]; count++; }
    }
    const bin = count ? Math.max(-10, Math.min(10, Math.round(10 * shadeOf(sum / count)))) : 0;
    return bin ? ` ${bin > 0 ? "high" : "low"} q${Math.abs(bin)}` : "";
  };

  const className = (side, s) => {
    const table = tables[side];
    const label = labelOf(table, s);
    let name = `t ${label}`;
    if (label === "kept") {
      if (s === 0 || labelOf(table, s - 1) !== "kept") name += " opens";
      if (s === shown.spans - 1 || labelOf(table, s + 1) !== "kept") name += " closes";
    }
    if (state.paint !== "kept") name += shadeClass(table, s);
    if (isDiffering(s)) name += " differs";
    if (shown.hits && shown.hits[s]) name += " hit";
    if (review) name += review.className(s);
    return name;
  };

  const spanElement = (side, s) => {
    const made = element("span", className(side, s));
    const content = visible(shown.content.slice(shown.charAt[s], shown.charAt[s + 1]));
    if (content.includes("\n")) {
      content.split("\n").forEach((line, i) => {
        if (i) {
          const sign = element("i", "nl");
          sign.setAttribute("aria-hidden", "true");
          made.append(sign, "\n");
        }
        made.append(line);
      });
    } else made.textContent = content;
    made.dataset.span = s;
    return made;
  };

  const fill = (block) => {
    if (block.filled) return;
    block.filled = true;
    block.cells.forEach((cell, side) => {
      const spans = [];
      for (let s = block.start; s < block.behind; s++) spans.push(spanElement(side, s));
      cell.replaceChildren(...spans);
    });
  };

  const empty = (block) => {
    if (block.filled && block.cells.some((cell) => cell.contains(stop))) return;
    block.filled = false;
    const content = visible(shown.content.slice(shown.charAt[block.start], shown.charAt[block.behind]));
    for (const cell of block.cells) cell.textContent = content;
  };

  // A block far from the screen is plain text: it takes the same room, and a long answer stays quick.
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const block = shown.blocks[Number(entry.target.dataset.block)];
        if (!block || !block.cells.includes(entry.target.firstChild)) continue; // of the conversation before
        if (entry.isIntersecting) fill(block);
        else empty(block);
      }
    },
    { rootMargin: "600px 0px" },
  );

  const findHits = () => {
    shown.hits = null;
    const query = state.query.toLowerCase();
    const content = shown.content.toLowerCase();
    if (!query || content.length !== shown.content.length) return;
    let at = content.indexOf(query), s = 0;
    while (at >= 0) {
      shown.hits ??= new Uint8Array(shown.spans);
      while (shown.charAt[s + 1] <= at) s++;
      for (let hit = s; hit < shown.spans && shown.charAt[hit] < at + query.length; hit++) shown.hits[hit] = 1;
      at = content.indexOf(query, at + query.length);
    }
  };

  const showText = () => {
    watcher.disconnect();
    const rows = shown.blocks.map((block, number) => {
      const row = element("div", "block");
      row.dataset.block = number;
      block.cells = tables.map(() => element("div", block.goesOn ? "cell goes-on" : "cell"));
      row.append(...block.cells);
      return row;
    });
    const names = element("div", "block names");
    names.append(...tables.map((table, i) => element("div", "cell", `${"AB"[i]}: ${visible(table.name)}`)));
    shown.blocks.forEach((block, number) => (number < 3 ? fill(block) : empty(block)));
    text.replaceChildren(...(isDiff ? [names] : []), ...rows);
    rows.forEach((row) => watcher.observe(row));
  };

  const recolour = () => {
    for (const block of shown.blocks) {
      if (!block.filled) continue;
      block.cells.forEach((cell, side) => {
        for (const span of cell.children) {
          const name = className(side, Number(span.dataset.span));
          if (span.className !== name) span.className = name;
        }
      });
    }
  };

  const showSummary = () => {
    const c = state.current;
    const words = [visible(page.sources[page.sourceOf[c]]), `row ${whole(page.rows[c])}`, plural(tokenCounts[c], "token")];
    tables.forEach((table, i) => {
      const mean = table.meanScore[c];
      const score = Number.isFinite(mean) ? `, mean score ${decimal(mean)} nats` : "";
      const counted = `${whole(table.keptIn[c])} of ${whole(responses(table, c))} response tokens kept`;
      words.push([`${isDiff ? `${"AB"[i]}: ` : ""}${counted}${score}`, ...noiseWords(table, c)].join(", "));
    });
    if (isDiff) words.push(`${plural(differingIn[c], "token")} differ${differingIn[c] === 1 ? "s" : ""}`);
    $("summary").textContent = words.join(" · ");
  };

  const firstSpan = () => {
    for (let s = 0; s < shown.spans; s++) if (labelOf(tables[0], s) !== "prompt") return s;
    return 0;
  };

  const openConversation = (c, { span = -1, scroll = false } = {}) => {
    state.current = c;
    shown = layOut(c);
    findHits();
    $("heading").replaceChildren(element("bdi", "", visible(page.ids[c])));
    state.selected = { side: 0, span: span >= 0 && span < shown.spans ? span : -1 };
    review?.opened();
    showText();
    showSummary();
    showList();
    scrollListToCurrent();
    if (shown.spans) setStop(0, state.selected.span < 0 ? firstSpan() : state.selected.span);
    if (span >= 0 && span < shown.spans) select(0, span, { focus: true });
    else {
      showFacts();
      const hit = shown.hits ? shown.hits.indexOf(1) : -1;
      if (scroll && hit >= 0) spanAt(0, hit).scrollIntoView({ block: "center" });
      else if (scroll && $("main").getBoundingClientRect().top < 0) $("main").scrollIntoView();
    }
    remember();
  };

  const rehit = () => {
    findHits();
    recolour();
  };

  const step = (by) => {
    const at = state.order.indexOf(state.current) + by;
    if (at >= 0 && at < state.order.length) {
      openConversation(state.order[at], { scroll: true });
      say(`${page.ids[state.current]}, ${at + 1} of ${state.order.length}. ${$("summary").textContent}`);
    }
  };

  // ---- one token ----

  let stop = null; // the one token that the Tab key reaches

  const spanAt = (side, s) => {
    const block = shown.blocks.find(({ behind }) => s < behind);
    fill(block);
    return block.cells[side].children[s - block.start];
  };

  const setStop = (side, s) => {
    stop?.removeAttribute("tabindex");
    stop = spanAt(side, s);
    stop.tabIndex = 0;
  };

  const select = (side, s, { focus = true, speak = false } = {}) => {
    if (s < 0 || s >= shown.spans) return;
    state.selected = { side, span: s };
    review?.selected(s);
    setStop(side, s);
    if (focus) stop.focus({ preventScroll: true });
    showFacts(s); // its panel may cover the foot of the page, and be higher than without a token
    const box = stop.getBoundingClientRect();
    const foot = getComputedStyle($("token")).position === "fixed" ? $("token").getBoundingClientRect().top : innerHeight;
    const cut = document.querySelector(".cut").getBoundingClientRect();
    if (box.top < Math.max(0, cut.bottom) || box.bottom > foot) stop.scrollIntoView({ block: "center" });
    if (speak) say(factWords(s));
    remember();
  };

  const selectNear = (by, speak) => select(state.selected.side, state.selected.span < 0 ? firstSpan() : state.selected.span + by, { focus: !speak, speak });

  const selectDiffering = (by, speak) => {
    let s = state.selected.span < 0 ? (by > 0 ? -1 : shown.spans) : state.selected.span;
    for (s += by; s >= 0 && s < shown.spans; s += by) {
      if (isDiffering(s)) return select(state.selected.side, s, { focus: !speak, speak });
    }
    say("no further token differs");
  };

  const tokenFacts = (table, t) => {
    const r = table.responseAt[t];
    if (r < 0) return [["label", "prompt"]];
    const facts = [["label", table.kept[r] ? "kept" : "dropped"]];
    for (const [name, words] of Object.entries(VALUE_NAMES)) {
      if (table.values[name]) facts.push([words, decimal(table.values[name][r]) + (name === "weight" ? "" : " nats")]);
    }
    if (table.ranks) {
      const rank = table.ranks[r];
      const place = `${whole(rank + 1)} of ${whole(table.ranked)} (best ${percent(rank + 1, table.ranked)})`;
      facts.push(["rank in the pool", rank === NOT_RANKED ? "none, without a score" : place]);
    }
    if (review) facts.push(...review.tokenFacts(t));
    return facts;
  };

  const showFacts = (s = state.selected.span) => {
    const parts = [];
    if (s < 0) parts.push(element("p", "", "Point at a token, tap it, or move to it with the arrow keys."));
    else {
      for (let t = shown.tokenAt[s]; t < shown.tokenAt[s + 1]; t++) {
        const heading = element("h3");
        heading.append(element("span", "piece", visible(page.pieces[pieceOf[t]]).replace(/\n/g, "↵").replace(/ /g, "␣")));
        heading.append(` id ${page.pieceIds[pieceOf[t]]}, position ${whole(t - tokenStart[state.current])}`);
        parts.push(heading);
        tables.forEach((table, i) => {
          if (isDiff) parts.push(element("div", "note", `${"AB"[i]} ${visible(table.name)}`));
          const listed = element("dl");
          for (const [name, value] of tokenFacts(table, t)) {
            const pair = element("div");
            pair.append(element("dt", "", name), element("dd", "", value));
            listed.append(pair);
          }
          parts.push(listed);
        });
      }
    }
    $("token-facts").replaceChildren(...parts);
    document.body.dataset.token = s < 0 ? "none" : "one";
  };

  const factWords = (s) => {
    const words = [];
    for (let t = shown.tokenAt[s]; t < shown.tokenAt[s + 1]; t++) {
      words.push(`token ${page.pieces[pieceOf[t]].trim() || "of spaces"}`);
      tables.forEach((table, i) => {
        words.push((isDiff ? `${"AB"[i]} ` : "") + tokenFacts(table, t).map(([name, value]) => `${name} ${value}`).join(", "));
      });
    }
    if (isDiffering(s)) words.push("differs");
    return words.join("; ");
  };

  let saying = 0;
  const say = (words) => {
    clearTimeout(saying);
    saying = setTimeout(() => ($("said").textContent = visible(words)), 80);
  };

  // ---- the address ----

  const addressOf = (withToken) => {
    const parts = new URLSearchParams({ c: page.ids[state.current] });
    if (withToken && state.selected.span >= 0) parts.set("t", state.selected.span);
    if (state.recut) parts.set("k", state.step / page.steps);
    if (state.paint !== "kept") parts.set("by", state.paint);
    return `#${parts}`;
  };

  let remembering = 0;
  const remember = () => {
    $("permalink").href = addressOf(true);
    clearTimeout(remembering); // browsers refuse more than a few changes a second
    remembering = setTimeout(() => history.replaceState(null, "", addressOf(true)), 250);
  };

  const follow = () => {
    const parts = new URLSearchParams(location.hash.slice(1));
    const share = parts.get("k") === null ? NaN : Number(parts.get("k"));
    const isCutThere = hasSlider && share >= 0 && share <= 1;
    state.step = isCutThere ? Math.round(share * page.steps) : startStep;
    state.recut = isCutThere || startsRecut;
    if (paints.includes(parts.get("by"))) state.paint = parts.get("by");
    const c = page.ids.indexOf(parts.get("c"));
    const span = parts.get("t") === null ? -1 : Number(parts.get("t"));
    return { c: c < 0 ? 0 : c, isNamed: c >= 0, span: Number.isInteger(span) ? span : -1 };
  };

  // ---- what changes what ----

  const applyCut = () => {
    relabel();
    showCut();
    if ($("sort").value === "place" || $("sort").value === "length") showList();
    else arrange();
    recolour();
    showSummary();
    showFacts();
    remember();
  };

  let waiting = false;
  const cutAt = (step) => {
    state.step = Math.max(0, Math.min(page.steps, step));
    state.recut = true;
    if (waiting) return; // one cut a frame, however fast the slider moves
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      applyCut();
    });
  };

  const paintBy = (name) => {
    state.paint = name;
    $("paint").value = name;
    showLegend();
    recolour();
    remember();
  };

  const spanOf = (target) => {
    const span = target.closest?.(".t[data-span]");
    return span && text.contains(span) ? { side: [...span.closest(".block").children].indexOf(span.parentNode), s: Number(span.dataset.span) } : null;
  };

  const mark = (found) => {
    if (!isDiff) return;
    text.querySelectorAll(".twin").forEach((twin) => twin.classList.remove("twin"));
    if (found) spanAt(1 - found.side, found.s).classList.add("twin");
  };

  const wide = matchMedia("(min-width: 761px)");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const showTheme = () => {
    document.documentElement.dataset.theme = $("theme").value || (dark.matches ? "dark" : "light");
  };

  const listen = () => {
    if (hasSlider) {
      $("slider").addEventListener("input", () => cutAt(Number($("slider").value)));
      $("percent").addEventListener("input", () => {
        if ($("percent").value !== "") cutAt(Math.round((Number($("percent").value) / 100) * page.steps));
      });
      $("percent").addEventListener("blur", showCut);
      $("own").hidden = !hasLabels;
      $("own").addEventListener("click", () => {
        state.recut = false;
        state.step = startStep;
        applyCut();
        say($("cut-status").textContent);
      });
      $("slider").addEventListener("change", () => say($("cut-status").textContent));
    }
    $("paint").addEventListener("change", () => paintBy($("paint").value));
    $("marks").addEventListener("change", () => document.body.toggleAttribute("data-marks", $("marks").checked));
    document.querySelectorAll("[name=side]").forEach((choice) =>
      choice.addEventListener("change", () => (document.body.dataset.side = choice.value)),
    );
    $("theme").addEventListener("change", showTheme);
    dark.addEventListener("change", showTheme);

    let typing = 0;
    $("query").addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => {
        state.query = $("query").value;
        filter();
      }, 120);
    });
    $("source").addEventListener("change", filter);
    for (const id of ["sort", "descending"]) $(id).addEventListener("change", () => { list.scrollTop = 0; arrange(); });
    list.addEventListener("scroll", showList, { passive: true });
    addEventListener("resize", showList);
    $("list-fold").addEventListener("toggle", () => {
      if (wide.matches) $("list-fold").open = true;
      showList();
      scrollListToCurrent();
    });
    wide.addEventListener("change", () => ($("list-fold").open = wide.matches));
    list.addEventListener("click", (event) => {
      const chosen = event.target.closest(".option");
      if (chosen) openConversation(Number(chosen.dataset.conversation), { scroll: true });
    });
    list.addEventListener("keydown", (event) => {
      const at = state.order.indexOf(state.current), last = state.order.length - 1;
      const many = Math.max(1, Math.floor(list.clientHeight / OPTION_HEIGHT) - 1);
      const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: last, PageDown: at + many, PageUp: at - many }[event.key];
      if (to === undefined || last < 0) return;
      event.preventDefault();
      openConversation(state.order[Math.max(0, Math.min(last, to))], { scroll: true });
    });

    $("previous").addEventListener("click", () => step(-1));
    $("next").addEventListener("click", () => step(1));
    $("token-previous").addEventListener("click", () => selectNear(-1, true));
    $("token-next").addEventListener("click", () => selectNear(1, true));
    $("differing-previous")?.addEventListener("click", () => selectDiffering(-1, true));
    $("differing-next")?.addEventListener("click", () => selectDiffering(1, true));
    $("skip").addEventListener("click", (event) => {
      event.preventDefault();
      $("main").focus();
    });

    text.addEventListener("pointerover", (event) => {
      const found = spanOf(event.target);
      mark(found);
      showFacts(found ? found.s : undefined);
    });
    text.addEventListener("pointerleave", () => { mark(null); showFacts(); });
    text.addEventListener("click", (event) => {
      const found = spanOf(event.target);
      if (found && getSelection().isCollapsed) select(found.side, found.s);
    });
    text.addEventListener("focusin", (event) => {
      const found = spanOf(event.target);
      if (found && found.s !== state.selected.span) select(found.side, found.s, { focus: false, speak: true });
    });
    text.addEventListener("keydown", (event) => {
      const found = spanOf(event.target);
      const to = found && { ArrowRight: found.s + 1, ArrowLeft: found.s - 1, Home: 0, End: shown.spans - 1 }[event.key];
      if (to === null || to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      select(found.side, to, { speak: true });
    });

    $("help-button").addEventListener("click", () => $("help").showModal());
    addEventListener("keydown", (event) => {
      const isTyping = event.target.closest?.("input:not([type=range], [type=checkbox], [type=radio]), select, textarea");
      if (isTyping || event.altKey || event.ctrlKey || event.metaKey || $("help").open || !$("keys").checked) return;
      const does = {
        j: () => step(1), k: () => step(-1), d: () => isDiff && selectDiffering(1), D: () => isDiff && selectDiffering(-1),
        c: () => paintBy(paints[(paints.indexOf(state.paint) + 1) % paints.length]),
        "/": () => { $("list-fold").open = true; $("query").focus(); },
        "?": () => $("help").showModal(),
        ...review?.keys,
      }[event.key];
      if (!does) return;
      event.preventDefault();
      does();
    });
    addEventListener("hashchange", () => {
      const place = follow();
      applyCut();
      paintBy(state.paint);
      openConversation(place.c, { span: place.span, scroll: true });
    });
  };

  const start = () => {
    showTheme();
    for (const [number, name] of page.sources.entries()) $("source").append(new Option(visible(name), number));
    for (const name of paints.slice(1)) $("paint").append(new Option(VALUE_NAMES[name], name));
    if (limits.score) $("sort").append(new Option("mean score", "score"));
    if (tables[0].noise) $("sort").append(new Option("estimated noise", "noise"));
    if (isDiff) $("sort").append(new Option("tokens that differ", "differing"));
    if (page.review) {
      const opened = () => shown;
      const parts = { page, base128, pieceOf, $, element, visible, say, whole, plural, tokenStart, opened };
      review = globalThis.tokencleanReview({ ...parts, openConversation, select, recolour, showList, showFacts });
    }
    const { totals } = page;
    const isSample = conversations + totals.tooLong < totals.conversations - totals.unmatched;
    $("totals").textContent = [
      `${whole(conversations)} of ${plural(totals.conversations, "conversation")}, ${whole(totals.shownTokens)} of ${plural(totals.tokens, "token")}.`,
      isSample ? `${review ? "Those that are suggested for review, then the first others" : `A sample, drawn by source with seed ${totals.seed}`}; ranks, cuts and shares by source are those of the whole pool.` : "",
      totals.unmatched ? `${plural(totals.unmatched, "row")} left out that only one of the tables has, or with other tokens.` : "",
      totals.tooLong ? `${plural(totals.tooLong, "conversation")} left out as too long.` : "",
    ].join(" ").trim();
    $("precision").textContent = page.precision;
    $("list-fold").open = wide.matches;
    $("sources-fold").open = matchMedia("(min-width: 1241px)").matches;
    listen();
    const place = follow();
    $("paint").value = state.paint;
    buildShares();
    relabel();
    showCut();
    showLegend();
    arrange();
    openConversation(place.c, { span: place.span });
    scrollListToCurrent();
    showList();
    review?.start(place);
    document.documentElement.dataset.ready = "";
  };

  start();
})();
