// The page of a text that was read: its numbers, what is chosen, and what keys and clicks do.

const page = JSON.parse(document.getElementById("data").textContent);
const one = (id) => document.getElementById(id);

function decoded(text, Kind = Uint8Array) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let k = 0; k < raw.length; k++) bytes[k] = raw.charCodeAt(k);
  return new Kind(bytes.buffer);
}

for (const layer of page.layers) {
  for (const values of Object.values(layer.values)) {
    values.codes = decoded(values.codes);
    values.low = decoded(values.low, Float32Array);
    values.high = decoded(values.high, Float32Array);
  }
}
for (const feature of page.features) feature.kinds = decoded(feature.kinds);
const ids = decoded(page.ids, Uint32Array);
const costs = decoded(page.costs, Float32Array);
const next = { ids: decoded(page.next.ids, Uint32Array), shares: decoded(page.next.shares, Uint16Array), count: page.next.count };

const source = {
  value(layer, quantity, row, token) {
    const { codes, low, high } = page.layers[layer].values[quantity];
    return low[row] + (codes[row * page.tokens + token] * (high[row] - low[row])) / 255;
  },
};

// Of each token the cell that shows it: of several that make one character the same.
const cellOf = new Int32Array(page.tokens).fill(page.places.length - 1);
for (let cell = page.places.length - 1, token = page.tokens - 1; token >= 0; token--) {
  while (cell > 0 && page.places[cell - 1] >= token) cell--;
  if (cell >= 0 && page.places[cell] >= token) cellOf[token] = cell;
}
const label = (token) => (page.places[cellOf[token]] === token ? page.texts[cellOf[token]] : "");

const state = { theme: "", layer: 0, quantity: "c", unit: 0, token: 0, feature: 0, sort: "telling", search: "", begin: 0, span: 1 };
let hovered = null;
let lists = [];
let remembering = 0;

const quantities = () => Object.keys(NAMES).filter((name) => name in page.layers[state.layer].values);
const narrow = () => one("lines").clientWidth < 700;
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

/** Change what is chosen; where the token or the span changed, the window goes along. */
function choose(changes) {
  const before = { ...state };
  Object.assign(state, changes);
  const layer = page.layers[state.layer];
  state.unit = clamp(state.unit, 0, layer.units.length - 1);
  if (!(state.quantity in layer.values)) state.quantity = "c";
  state.token = clamp(state.token, 0, page.tokens - 1);
  state.span = clamp(state.span, Math.min(8, page.tokens), page.tokens);
  if (state.token < state.begin || state.token >= state.begin + state.span || state.span !== before.span) {
    state.begin = state.token - Math.floor(state.span / 2);
  }
  state.begin = clamp(state.begin, 0, page.tokens - state.span);
  const changed = (...names) => names.some((name) => state[name] !== before[name]);
  if (changed("layer", "quantity", "unit", "theme")) colourText();
  if (changed("layer", "quantity", "theme")) showScale();
  const focused = one("units").contains(document.activeElement);
  if (changed("layer", "feature", "sort", "search", "quantity")) listUnits();
  if (changed("token")) markToken(before.token);
  markUnit();
  if (focused) one("units").querySelector("[tabindex='0']")?.focus();
  draw();
  clearTimeout(remembering);
  remembering = setTimeout(remember, 300);
}

/** A page that is loaded again, or whose address is sent, shows the same. */
function remember() {
  const unit = page.layers[state.layer].units[state.unit];
  history.replaceState(null, "", `#layer=${state.layer}&unit=${unit}&quantity=${state.quantity}&token=${state.token}`);
}

// The text.

function fillText() {
  const cells = page.texts.map((text, cell) => {
    const span = document.createElement("span");
    span.id = `cell-${cell}`;
    span.setAttribute("role", "option");
    span.setAttribute("aria-selected", "false");
    // A blank has no name of its own.
    if (!text.trim()) {
      const name = visible(text).trim() || `U+${text.codePointAt(0).toString(16)}`;
      span.setAttribute("aria-label", text === " " ? "space" : name);
    }
    span.textContent = text.replace(/[\n\r\t\u0000-\u001f\u007f]/g, (sign) => visible(sign) + ("\n\t".includes(sign) ? sign : ""));
    return span;
  });
  one("text").replaceChildren(...cells);
}

function colourText() {
  const ramp = rampOf(state.theme, state.quantity);
  const styles = ramp.map((colour) => [css(colour), inkOn(colour)]);
  const cells = one("text").children;
  for (let cell = 0; cell < cells.length; cell++) {
    const value = source.value(state.layer, state.quantity, state.unit, page.places[cell]);
    const [back, ink] = styles[position(state.quantity, value)];
    cells[cell].style.backgroundColor = back;
    cells[cell].style.color = ink;
  }
}

function markToken(before) {
  const box = one("text");
  const [old, cell] = [box.children[cellOf[before]], box.children[cellOf[state.token]]];
  if (!cell) return;
  old.setAttribute("aria-selected", "false");
  cell.setAttribute("aria-selected", "true");
  box.setAttribute("aria-activedescendant", cell.id);
  const [top, bottom] = [cell.offsetTop, cell.offsetTop + cell.offsetHeight];
  if (top < box.scrollTop + 8) box.scrollTop = top - 40;
  if (bottom > box.scrollTop + box.clientHeight - 8) box.scrollTop = bottom - box.clientHeight + 40;
}

/** The cell above or below, nearest in the same column. */
function cellBeyond(cell, direction) {
  const cells = one("text").children;
  const [from, column] = [cells[cell].offsetTop, cells[cell].offsetLeft];
  let [best, line] = [cell, null];
  for (let near = cell + direction; near >= 0 && near < cells.length; near += direction) {
    const top = cells[near].offsetTop;
    if (Math.abs(top - from) < 4) continue;
    if (line === null) [line, best] = [top, near];
    if (Math.abs(top - line) >= 4) break;
    if (Math.abs(cells[near].offsetLeft - column) < Math.abs(cells[best].offsetLeft - column)) best = near;
  }
  return best;
}

function textKey(event) {
  const cell = cellOf[state.token];
  const moves = {
    ArrowLeft: () => cell - 1, ArrowRight: () => cell + 1,
    ArrowUp: () => cellBeyond(cell, -1), ArrowDown: () => cellBeyond(cell, 1),
    Home: () => 0, End: () => page.places.length - 1,
  };
  if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  choose({ token: page.places[clamp(moves[event.key](), 0, page.places.length - 1)] });
}

// What comes next.

function showNext() {
  const token = hovered ?? state.token;
  one("after").textContent = `after \u201c${context(token)}\u201d`;
  const came = token + 1 < page.tokens ? ids[token + 1] : null;
  const shares = Array.from({ length: next.count }, (_, k) => [next.ids[token * next.count + k], next.shares[token * next.count + k] / 65535]);
  if (came !== null && !shares.some(([id]) => id === came) && !Number.isNaN(costs[token + 1])) shares.push([came, Math.exp(-costs[token + 1])]);
  one("next").replaceChildren(...shares.map(([id, share]) => {
    const item = document.createElement("li");
    item.className = id === came ? "came" : "";
    const bar = element("span", "bar-of", "");
    bar.append(element("i", "", ""));
    bar.firstChild.style.width = `${100 * share}%`;
    item.append(element("span", "token", visible(page.names[id])), bar, element("span", "share", percent(share)));
    if (id === came) item.title = "this came";
    return item;
  }));
}

const percent = (share) => (share < 0.0995 ? `${(100 * share).toFixed(1)}%` : `${Math.round(100 * share)}%`);

function context(token) {
  const cell = cellOf[token];
  return visible(page.texts.slice(Math.max(0, cell - 24), cell + 1).join(""));
}

function element(tag, name, text) {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  return made;
}

// Units: each a number of what they are sorted by, and those that the search finds.

const unitName = (layer, row) => `${layer}.${page.layers[layer].units[row]}`;
const gate = () => (["i", "f", "g", "o"].includes(state.quantity) ? state.quantity : "f");
const bits = (layer, row, feature) => page.layers[layer].bits[feature]?.[row] ?? 0;

/** The feature that a unit shares most with, above its bar; -1 for none. */
function follows(layer, row) {
  let [best, most] = [-1, 0];
  page.features.forEach((feature, k) => {
    const excess = bits(layer, row, k) - feature.bar;
    if (excess > most) [best, most] = [k, excess];
  });
  return best;
}

const MOST_BITS = Math.max(...page.features.map((feature) => feature.entropy));
const SORTS = {
  telling: { name: () => "how telling", text: (layer, row) => (follows(layer, row) < 0 ? "" : page.features[follows(layer, row)].name),
    value: (layer, row) => -row, meter: (layer, row) => { const k = follows(layer, row); return k < 0 ? 0 : bits(layer, row, k) / MOST_BITS; } },
  follows: { name: () => (page.features.length ? `bits of ${page.features[state.feature].name}` : "bits of a feature"),
    text: (layer, row) => bits(layer, row, state.feature).toFixed(3), value: (layer, row) => bits(layer, row, state.feature),
    meter: (layer, row) => bits(layer, row, state.feature) / (page.features[state.feature]?.entropy ?? 1) },
  memory: { name: () => "memory length", text: (layer, row) => steps(page.layers[layer].memory[row]),
    value: (layer, row) => page.layers[layer].memory[row] ?? Infinity,
    meter: (layer, row) => Math.min(1, Math.log(page.layers[layer].memory[row] ?? Infinity) / Math.log(1000)) },
  right: { name: () => `${gate()} saturated right`, text: (layer, row) => percent(page.layers[layer].right[gate()][row]),
    value: (layer, row) => page.layers[layer].right[gate()][row], meter: (layer, row) => page.layers[layer].right[gate()][row] },
  left: { name: () => `${gate()} saturated left`, text: (layer, row) => percent(page.layers[layer].left[gate()][row]),
    value: (layer, row) => page.layers[layer].left[gate()][row], meter: (layer, row) => page.layers[layer].left[gate()][row] },
  number: { name: () => "unit number", text: () => "", value: (layer, row) => -page.layers[layer].units[row], meter: () => 0 },
};

const steps = (memory) => (memory === null ? "\u221e" : memory >= 100 ? Math.round(memory).toString() : memory.toPrecision(2));

/** What a search term asks of a unit, or null where it is not understood. */
function asked(term) {
  const [, name, sign, number] = /^([a-z]+|[\d.]+)(?:([<>])([\d.]+))?$/.exec(term) ?? [];
  if (name === undefined || (number !== undefined && Number.isNaN(Number(number)))) return null;
  const against = (value) => (sign === ">" ? value > Number(number) : value < Number(number));
  const feature = page.features.findIndex((each) => each.name === name);
  if (feature >= 0) return (layer, row) => (sign ? against(bits(layer, row, feature)) : bits(layer, row, feature) > page.features[feature].bar);
  if (["memory", "left", "right"].includes(name) && sign) return (layer, row) => against(SORTS[name].value(layer, row));
  if (name === "holding" && sign) return (layer, row) => against(page.layers[layer].holding[row]);
  if (sign) return null;
  if (name === "dead" || name === "latching") return (layer, row) => page.layers[layer][name][row];
  if (/^\d+$/.test(name)) return (layer, row) => page.layers[layer].units[row] === Number(name);
  if (/^\d+\.\d+$/.test(name)) return (layer, row) => unitName(layer, row) === name;
  return null;
}

/** [layer, row] of the units that a search finds; without one, those of the layer. */
function searched() {
  const words = state.search.toLowerCase().replace(/\s*([<>])\s*/g, "$1").replace(/layer\s*(\d+)/g, "layer=$1").split(/[\s,]+/).filter(Boolean);
  const tests = words.map((word) => (word.startsWith("layer=") ? (layer) => layer === Number(word.slice(6)) : asked(word)));
  const unknown = words.filter((_, k) => tests[k] === null);
  if (unknown.length) return { unknown: unknown[0], units: [] };
  const layers = words.length ? page.layers.map((_, k) => k) : [state.layer];
  const units = layers.flatMap((layer) => page.layers[layer].units.map((_, row) => [layer, row]));
  return { units: units.filter(([layer, row]) => tests.every((test) => test(layer, row))), words: words.length };
}

function listUnits() {
  const { units, unknown, words } = searched();
  const sort = SORTS[state.sort];
  units.sort(([a, b], [c, d]) => sort.value(c, d) - sort.value(a, b) || a - c || b - d);
  lists = units;
  for (const option of one("sort").options) option.textContent = SORTS[option.value].name();
  const names = page.features.map((each) => each.name).join(", ");
  one("found").textContent = unknown
    ? `\u201c${unknown}\u201d is not understood: write 12, 1.12, layer 0, dead, latching, memory > 20, left > 0.5, right > 0.5, holding > 0.5${names && `, or one of ${names} (quoted > 0.1)`}`
    : `${units.length} of ${words ? "all layers" : `layer ${state.layer}`}, by ${sort.name()}${state.sort === "follows" && page.features.length ? `; bar ${page.features[state.feature].bar.toFixed(3)}` : ""}`;
  one("units").replaceChildren(...units.map(([layer, row]) => {
    const button = element("button", "", "");
    button.type = "button";
    button.tabIndex = -1;
    const meter = element("span", "meter", "");
    meter.append(element("i", "", ""));
    meter.firstChild.style.width = `${100 * clamp(sort.meter(layer, row), 0, 1)}%`;
    button.append(element("span", "name", unitName(layer, row)), meter, element("span", "number", sort.text(layer, row)));
    button.addEventListener("click", () => choose({ layer, unit: row }));
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
}

function markUnit() {
  let chosen = null;
  lists.forEach(([layer, row], k) => {
    const button = one("units").children[k].firstChild;
    const here = layer === state.layer && row === state.unit;
    button.setAttribute("aria-pressed", String(here));
    button.tabIndex = -1;
    if (here) chosen = button;
  });
  const first = chosen ?? one("units").querySelector("button");
  if (first) first.tabIndex = 0;
}

function unitKey(event) {
  const buttons = [...one("units").querySelectorAll("button")];
  const at = buttons.indexOf(document.activeElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (to === undefined || at < 0) return;
  event.preventDefault();
  const [layer, unit] = lists[clamp(to, 0, buttons.length - 1)];
  choose({ layer, unit });
}

/** Rows of the heat map: the layer's units in the order of the list. */
function rowsOfLayer() {
  const sort = SORTS[state.sort];
  const rows = page.layers[state.layer].units.map((_, row) => row);
  return rows.sort((a, b) => sort.value(state.layer, b) - sort.value(state.layer, a) || a - b);
}

// The plots.

let waiting = false;

function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const colours = coloursOf(document.body);
    const view = (id) => ({ scale: scaleOf(one(id).clientWidth, state.begin, state.begin + state.span, narrow()), token: state.token, label });
    drawLines(one("lines").firstElementChild, source, quantities(), { layer: state.layer, row: state.unit }, view("lines"), colours);
    const sort = SORTS[state.sort];
    const rows = rowsOfLayer();
    const feature = page.features[state.feature];
    const heat = {
      layer: state.layer, quantity: state.quantity, rows, chosen: state.unit, height: rowHeight(rows.length),
      bars: rows.map((row) => clamp(sort.meter(state.layer, row), 0, 1)),
      band: feature ? { kinds: feature.kinds, count: feature.labels.length } : null,
      name: (row) => unitName(state.layer, row),
    };
    drawHeat(one("heat").firstElementChild, source, heat, view("heat"), state.theme, colours);
    showNext();
    describe();
  });
}

const rowHeight = (rows) => clamp(Math.floor(640 / rows), 3, 14);

function describe() {
  const layer = page.layers[state.layer];
  const row = state.unit;
  one("lines-heading").textContent = `Layer ${state.layer}, unit ${layer.units[row]}`;
  const best = follows(state.layer, row);
  const feature = page.features[best];
  const parts = [
    `memory ${steps(layer.memory[row])} steps`,
    `f above 0.9 in ${percent(layer.right.f[row])} of all steps, i below 0.1 in ${percent(layer.left.i[row])}`,
    feature ? `follows \u201c${feature.name}\u201d with ${layer.by[best][row]}: ${bits(state.layer, row, best).toFixed(3)} of ${feature.entropy.toFixed(3)} bits, bar ${feature.bar.toFixed(3)}` : "follows none of the features above its bar",
  ];
  if (layer.latching[row]) parts.push("latching");
  if (layer.dead[row]) parts.push("dead");
  one("facts").textContent = parts.join("; ");
  const values = quantities().map((name) => `${name} ${signed(source.value(state.layer, name, row, state.token))}`);
  const cost = Number.isNaN(costs[state.token]) ? "" : `, cost ${costs[state.token].toFixed(2)} nats`;
  one("reading").textContent = `token ${state.token} \u201c${visible(label(state.token))}\u201d${cost}: ${values.join("  ")}`;
  one("window").textContent = `tokens ${state.begin} to ${state.begin + state.span - 1} of ${page.tokens}`;
  const compared = page.features[state.feature];
  one("rows").textContent = `${layer.units.length} of ${layer.hidden} units of layer ${state.layer}, ${NAMES[state.quantity]}, by ${SORTS[state.sort].name()}` +
    (compared ? `; the band on top is \u201c${compared.name}\u201d: ${compared.labels[0]} (faint) to ${compared.labels.at(-1)} (strong)` : "");
}

function plotKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const rows = rowsOfLayer();
  const at = rows.indexOf(state.unit);
  const changes = {
    ArrowLeft: { token: state.token - 1 }, ArrowRight: { token: state.token + 1 },
    ArrowUp: { unit: rows[Math.max(0, at - 1)] }, ArrowDown: { unit: rows[Math.min(rows.length - 1, at + 1)] },
    PageUp: { token: state.token - state.span }, PageDown: { token: state.token + state.span },
    Home: { token: 0 }, End: { token: page.tokens - 1 },
    "+": { span: Math.round(state.span / 1.5) }, "=": { span: Math.round(state.span / 1.5) },
    "-": { span: Math.ceil(state.span * 1.5) }, "\u2212": { span: Math.ceil(state.span * 1.5) },
  }[event.key];
  if (!changes) return;
  event.preventDefault();
  choose(changes);
}

function plotClick(event) {
  const box = event.currentTarget;
  const edge = box.firstElementChild.getBoundingClientRect();
  const scale = scaleOf(box.clientWidth, state.begin, state.begin + state.span, narrow());
  const changes = { token: tokenAt(scale, event.clientX - edge.left) };
  if (box.id === "heat") {
    const rows = rowsOfLayer();
    const top = page.features.length ? BAND + 6 : 0;
    const row = Math.floor((event.clientY - edge.top - top) / rowHeight(rows.length));
    if (row >= 0 && row < rows.length) changes.unit = rows[row];
  }
  choose(changes);
}

// Controls.

function radios(id, choices, pick) {
  for (const [value, name, description] of choices) {
    const [frame, input] = [document.createElement("label"), document.createElement("input")];
    Object.assign(input, { type: "radio", name: id, value });
    input.setAttribute("aria-label", description);
    frame.title = description;
    input.addEventListener("change", () => pick(value));
    frame.append(input, element("span", "", name));
    one(id).append(frame);
  }
}

/** Check the one of this value, and show those that there are. */
function check(id, chosen, there) {
  for (const input of one(id).querySelectorAll("input")) {
    input.checked = input.value === chosen;
    input.parentElement.hidden = !there.includes(input.value);
  }
}

function showScale() {
  check("layers", String(state.layer), page.layers.map((_, k) => String(k)));
  check("quantities", state.quantity, quantities());
  const signedOnes = SIGNED.has(state.quantity);
  one("least").textContent = signedOnes ? (state.quantity === "c" ? "tanh(c) \u22121" : "\u22121") : "shut 0";
  one("most").textContent = signedOnes ? "+1" : "1 open";
  const ramp = one("ramp");
  const pen = prepared(ramp, 120, 12);
  rampOf(state.theme, state.quantity).forEach((colour, k) => {
    pen.fillStyle = css(colour);
    pen.fillRect((k * 120) / 256, 0, 1, 12);
  });
}

function options(id, entries, chosen, pick) {
  one(id).replaceChildren(...entries.map(([value, name]) => new Option(name, value, false, value === chosen)));
  one(id).addEventListener("change", (event) => pick(event.target.value));
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  one("theme").textContent = theme === "dark" ? "Light" : "Dark";
  one("theme").setAttribute("aria-label", `${theme === "dark" ? "light" : "dark"} theme`);
  choose({ theme });
}

function listen() {
  radios("layers", page.layers.map((_, k) => [String(k), String(k), `layer ${k}`]), (value) => choose({ layer: Number(value), unit: 0 }));
  radios("quantities", Object.entries(NAMES).map(([name, words]) => [name, name, words]), (value) => choose({ quantity: value }));
  one("theme").addEventListener("click", () => setTheme(state.theme === "dark" ? "light" : "dark"));
  const text = one("text");
  const tokenOf = (event) => (event.target.id.startsWith("cell-") ? page.places[Number(event.target.id.slice(5))] : null);
  text.addEventListener("click", (event) => tokenOf(event) !== null && choose({ token: tokenOf(event) }));
  text.addEventListener("mouseover", (event) => { hovered = tokenOf(event); showNext(); });
  text.addEventListener("mouseleave", () => { hovered = null; showNext(); });
  text.addEventListener("keydown", textKey);
  one("search").addEventListener("input", (event) => choose({ search: event.target.value }));
  one("units").addEventListener("keydown", unitKey);
  for (const id of ["lines", "heat"]) {
    one(id).addEventListener("keydown", plotKey);
    one(id).addEventListener("click", plotClick);
  }
  const buttons = {
    earlier: () => ({ begin: state.begin - Math.ceil(state.span / 2), token: state.token - Math.ceil(state.span / 2) }),
    later: () => ({ begin: state.begin + Math.ceil(state.span / 2), token: state.token + Math.ceil(state.span / 2) }),
    wider: () => ({ span: Math.ceil(state.span * 1.5) }),
    closer: () => ({ span: Math.round(state.span / 1.5) }),
    whole: () => ({ span: page.tokens }),
  };
  for (const [id, changes] of Object.entries(buttons)) one(id).addEventListener("click", () => choose(changes()));
  new ResizeObserver(draw).observe(one("lines"));
}

function begin() {
  one("about").textContent = page.about;
  one("notes").textContent = page.notes.join(" ");
  fillText();
  listen();
  const given = new URLSearchParams(location.hash.slice(1));
  const layer = clamp(Number(given.get("layer") ?? page.first.layer) || 0, 0, page.layers.length - 1);
  const unit = given.has("unit") ? page.layers[layer].units.indexOf(Number(given.get("unit"))) : page.first.row;
  const features = page.features.length > 0;
  if (features) state.feature = page.first.feature;
  options("feature", page.features.map((each, k) => [String(k), each.name]), String(state.feature), (value) => {
    one("sort").value = "follows";
    choose({ feature: Number(value), sort: "follows" });
  });
  one("feature").disabled = !features;
  options("sort", Object.keys(SORTS).filter((name) => features || name !== "follows").map((name) => [name, name]), state.sort, (value) => choose({ sort: value }));
  state.span = Math.min(page.tokens, narrow() ? 32 : 120);
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  listUnits();
  choose({ layer, unit: Math.max(0, unit), quantity: given.get("quantity") ?? "c", token: Number(given.get("token") ?? 40) || 0 });
  markToken(state.token);
}

begin();
