// The live page: what is typed goes to the session, what it did comes back, and is drawn at once.

const live = JSON.parse(document.getElementById("data").textContent);
const one = (id) => document.getElementById(id);
const SHOWN_ROWS = 48;

const state = { theme: "light", at: 0, layer: 0, quantity: "c", unit: 0, temperature: 0.8 };
const steps = [[], []];
let next = [[], []];
let turn = null;
let rows = Array.from({ length: Math.min(SHOWN_ROWS, live.hidden) }, (_, unit) => unit);
let busy = false;
let waiting = null;
let writing = null;
// Milliseconds from a key to the picture that it led to, the last 200: what the project's tests and benchmarks read.
const delays = [];

const width = (quantity) => (quantity === "h" ? live.h_dim : live.hidden);
const source = {
  value: (layer, quantity, unit, token) => steps[state.at][token]?.[quantity][layer * width(quantity) + unit] ?? 0,
};
const quantities = () => Object.keys(NAMES).filter((name) => name !== "h" || live.h_dim === live.hidden);

function floats(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let k = 0; k < raw.length; k++) bytes[k] = raw.charCodeAt(k);
  return new Float32Array(bytes.buffer);
}

/** Ask the session for something. One at a time; of texts that are typed meanwhile the last one follows. */
async function ask(asked, since = performance.now()) {
  if (busy) {
    waiting = waiting && waiting.asked.do !== "read" ? waiting : { asked, since };
    return;
  }
  busy = true;
  try {
    const answer = await fetch("/", {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Unrolled-Secret": live.secret },
      body: JSON.stringify({ ...asked, turn }),
    });
    const told = await answer.json();
    one("trouble").textContent = told.error ?? "";
    if (told.error) stopWriting();
    else take(told, asked);
    draw(since);
  } catch (error) {
    stopWriting();
    one("trouble").textContent = `The session does not answer (${error.message}): is the command still running?`;
  } finally {
    busy = false;
  }
  const then = waiting;
  waiting = null;
  if (then) ask(then.asked, then.since);
}

function take(told, asked) {
  turn = told.turn;
  told.texts.forEach((text, at) => {
    steps[at].length = text.kept;
    for (const step of text.steps) {
      const { text: completes, ...values } = step;
      steps[at].push({ text: completes, ...Object.fromEntries(Object.entries(values).map(([name, packed]) => [name, floats(packed)])) });
    }
    if (asked.do !== "read" && one(`text-${at}`).value !== text.text) one(`text-${at}`).value = text.text;
  });
  next = told.texts.map((text) => text.next);
  showClamps(told.clamps);
}

function showClamps(clamps) {
  one("clamps").replaceChildren(...clamps.map(({ layer, name, unit, value }) => {
    const item = document.createElement("li");
    const button = element("button", "", `Let go of ${name} of ${layer}.${unit}, held at ${value}`);
    button.type = "button";
    button.addEventListener("click", () => ask({ do: "clamp", layer, name, unit, value: null }));
    item.append(button);
    return item;
  }));
}

function element(tag, name, text) {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  return made;
}

// What is seen.

let drawn = false;

/** Behind the frame that is being made: a message waits until it has been painted. */
function afterwards(what) {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => {
    port1.close();
    what();
  };
  port2.postMessage(null);
}

function draw(since = null) {
  if (since !== null) requestAnimationFrame(() => afterwards(() => {
    delays.push(performance.now() - since);
    delays.splice(0, delays.length - 200);
  }));
  if (drawn) return;
  drawn = true;
  requestAnimationFrame(() => {
    drawn = false;
    const colours = coloursOf(document.body);
    const narrow = one("lines").clientWidth < 700;
    const count = steps[state.at].length;
    const span = narrow ? 40 : 100;
    const begin = Math.max(0, count - span);
    const view = (id) => ({ scale: scaleOf(one(id).clientWidth, begin, Math.max(begin + span, count), narrow), token: count - 1, label: (token) => steps[state.at][token]?.text ?? "" });
    const cut = (scale) => ({ ...scale, end: Math.max(begin + 1, count) });
    for (const at of [0, 1]) mirror(at);
    const lines = view("lines");
    drawLines(one("lines").firstElementChild, source, quantities(), { layer: state.layer, row: state.unit }, { ...lines, scale: cut(lines.scale), token: Math.max(0, count - 1) }, colours);
    const heat = view("heat");
    drawHeat(one("heat").firstElementChild, source, {
      layer: state.layer, quantity: state.quantity, rows, chosen: state.unit, height: 11, bars: rows.map(() => 0), band: null,
      name: (unit) => `${state.layer}.${unit}`,
    }, { ...heat, scale: heat.scale, token: Math.max(0, count - 1) }, state.theme, colours);
    showNext();
    one("lines-heading").textContent = `Layer ${state.layer}, unit ${state.unit}`;
    one("rows").textContent = `${rows.length} of ${live.hidden} units of layer ${state.layer}, ${NAMES[state.quantity]}`;
    one("reading").textContent = count ? quantities().map((name) => `${name} ${signed(source.value(state.layer, name, state.unit, count - 1))}`).join("  ") : "Nothing was read yet.";
  });
}

/** The text in colours; of what is there already only what has changed is touched, since all else is laid out anew. */
function mirror(at) {
  const ramp = rampOf(state.theme, state.quantity);
  const size = width(state.quantity);
  const shown = one(`mirror-${at}`);
  while (shown.children.length > steps[at].length) shown.lastChild.remove();
  const spans = [...shown.children];
  steps[at].forEach((step, k) => {
    const span = spans[k] ?? shown.appendChild(element("span", "", ""));
    const text = step.text.replace(/[\n\r\t\u0000-\u001f\u007f]/g, (sign) => visible(sign) + ("\n\t".includes(sign) ? sign : ""));
    if (span.textContent !== text) span.textContent = text;
    const colour = ramp[position(state.quantity, step[state.quantity][state.layer * size + state.unit])];
    if (span.dataset.colour === css(colour)) return;
    span.dataset.colour = css(colour);
    span.style.backgroundColor = css(colour);
    span.style.color = inkOn(colour);
  });
}

function showNext() {
  const text = steps[state.at].slice(-24).map((step) => step.text).join("");
  one("after").textContent = `after \u201c${visible(text)}\u201d of text ${"AB"[state.at]}`;
  one("next").replaceChildren(...next[state.at].map(({ text: token, share }) => {
    const item = document.createElement("li");
    const bar = element("span", "bar-of", "");
    bar.append(element("i", "", ""));
    bar.firstChild.style.width = `${100 * share}%`;
    item.append(element("span", "token", visible(token)), bar, element("span", "share", `${(100 * share).toFixed(1)}%`));
    return item;
  }));
}

/** The units whose values vary most over the text that is shown. */
function rank() {
  const size = width(state.quantity);
  const spread = Array.from({ length: size }, (_, unit) => {
    const all = steps[state.at].map((step) => position(state.quantity, step[state.quantity][state.layer * size + unit]));
    const mean = all.reduce((sum, each) => sum + each, 0) / Math.max(1, all.length);
    return [unit, all.reduce((sum, each) => sum + (each - mean) ** 2, 0)];
  });
  rows = spread.sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, SHOWN_ROWS).map(([unit]) => unit);
  pick({ unit: rows[0] });
}

// What is done.

function pick(changes) {
  Object.assign(state, changes);
  state.unit = Math.max(0, Math.min(width("c") - 1, state.unit || 0));
  one("unit").value = state.unit;
  for (const [id, value] of [["texts", state.at], ["layers", state.layer], ["quantities", state.quantity]]) {
    for (const input of one(id).querySelectorAll("input")) input.checked = input.value === String(value);
  }
  const signedOnes = SIGNED.has(state.quantity);
  one("least").textContent = signedOnes ? (state.quantity === "c" ? "tanh(c) \u22121" : "\u22121") : "shut 0";
  one("most").textContent = signedOnes ? "+1" : "1 open";
  const pen = prepared(one("ramp"), 120, 12);
  rampOf(state.theme, state.quantity).forEach((colour, k) => {
    pen.fillStyle = css(colour);
    pen.fillRect((k * 120) / 256, 0, 1, 12);
  });
  draw();
}

function radios(id, choices, change) {
  for (const [value, name, description] of choices) {
    const [frame, input] = [document.createElement("label"), document.createElement("input")];
    Object.assign(input, { type: "radio", name: id, value });
    input.setAttribute("aria-label", description);
    frame.title = description;
    input.addEventListener("change", () => change(value));
    frame.append(input, element("span", "", name));
    one(id).append(frame);
  }
}

function stopWriting() {
  clearInterval(writing);
  writing = null;
  one("go-on").setAttribute("aria-pressed", "false");
}

const write = () => ask({ do: "write", at: state.at, temperature: Number(one("temperature").value) });

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  one("theme").textContent = theme === "dark" ? "Light" : "Dark";
  one("theme").setAttribute("aria-label", `${theme === "dark" ? "light" : "dark"} theme`);
  pick({ theme });
}

function listen() {
  const done = (what) => { one("done").textContent = what; };
  radios("texts", [["0", "A", "text A"], ["1", "B", "text B"]], (value) => pick({ at: Number(value) }));
  radios("layers", Array.from({ length: live.layers }, (_, k) => [String(k), String(k), `layer ${k}`]), (value) => pick({ layer: Number(value) }));
  radios("quantities", quantities().map((name) => [name, name, NAMES[name]]), (value) => pick({ quantity: value }));
  for (const at of [0, 1]) {
    one(`text-${at}`).addEventListener("focus", () => pick({ at }));
    one(`text-${at}`).addEventListener("input", (event) => {
      stopWriting();
      ask({ do: "read", at, text: event.target.value });
    });
  }
  one("write").addEventListener("click", write);
  one("go-on").addEventListener("click", () => {
    if (writing) return stopWriting();
    one("go-on").setAttribute("aria-pressed", "true");
    writing = setInterval(() => busy || write(), 120);
  });
  for (let layer = 0; layer < live.layers; layer++) {
    const button = element("button", "", `Zero layer ${layer}`);
    button.type = "button";
    button.addEventListener("click", () => ask({ do: "zero", layer, at: state.at }).then(() => done(`h and c of layer ${layer} are zero, behind text ${"AB"[state.at]}.`)));
    one("zeros").append(button);
  }
  one("swap").addEventListener("click", () => ask({ do: "swap" }).then(() => done("Each text now goes on from the other's state.")));
  one("held-name").replaceChildren(...Object.entries(NAMES).map(([name, words]) => new Option(`${name}, ${words}`, name)));
  one("hold").addEventListener("click", () => ask({ do: "clamp", layer: state.layer, name: one("held-name").value, unit: state.unit, value: Number(one("held-value").value) }));
  one("unit").max = live.hidden - 1;
  one("unit").addEventListener("input", (event) => event.target.value !== "" && pick({ unit: Number(event.target.value) }));
  one("rank").addEventListener("click", rank);
  one("heat").addEventListener("click", (event) => {
    const row = Math.floor((event.clientY - one("heat").firstElementChild.getBoundingClientRect().top) / 11);
    if (row >= 0 && row < rows.length) pick({ unit: rows[row] });
  });
  one("theme").addEventListener("click", () => setTheme(state.theme === "dark" ? "light" : "dark"));
  new ResizeObserver(() => draw()).observe(one("lines"));
}

listen();
setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
ask({ do: "show" });
