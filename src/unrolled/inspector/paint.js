"use strict";

// Colours, lines and heat maps: what is drawn, wherever its numbers come from. A `source` gives them, by
// value(layer, quantity, row, token).

const NAMES = {
  c: "cell state", h: "hidden state", i: "input gate", f: "forget gate", g: "candidate", o: "output gate",
};
const SIGNED = new Set(["c", "h", "g"]);

// Stops from least to most: around zero for what has a sign, else from shut to open.
const STOPS = {
  light: {
    signed: ["#1b4f9c", "#6fa8dc", "#ffffff", "#f2936f", "#a81c2b"],
    share: ["#ffffff", "#d4eedd", "#7fcaa0", "#23875a", "#00432b"],
  },
  dark: {
    signed: ["#6db6ff", "#24598f", "#151920", "#8f3a2c", "#ff8f73"],
    share: ["#151920", "#12493a", "#1a8560", "#58cf9b", "#d2fbe4"],
  },
};

/** Position on the ramp, 0 to 255; a cell state by its tanh, which is what the output gate lets through. */
function position(quantity, value) {
  if (quantity === "c") value = Math.tanh(value);
  const share = SIGNED.has(quantity) ? (value + 1) / 2 : value;
  return Math.max(0, Math.min(255, Math.round(255 * share)));
}

const ramps = new Map();

/** 256 colours as [red, green, blue]. */
function rampOf(theme, quantity) {
  const kind = SIGNED.has(quantity) ? "signed" : "share";
  const key = theme + kind;
  if (!ramps.has(key)) {
    const stops = STOPS[theme][kind].map((hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16)));
    ramps.set(key, Array.from({ length: 256 }, (_, k) => {
      const at = (k / 255) * (stops.length - 1);
      const left = Math.min(stops.length - 2, Math.floor(at));
      return stops[left].map((low, channel) => Math.round(low + (at - left) * (stops[left + 1][channel] - low)));
    }));
  }
  return ramps.get(key);
}

/** Black or white, whichever is read better on it: the worse one of WCAG's ratios is then 4.58. */
function inkOn(colour) {
  const [red, green, blue] = colour.map((each) => {
    const share = each / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000000" : "#ffffff";
}

const css = (colour) => `rgb(${colour.join(",")})`;

/** What stands for a token's text where there is room for a character or a word. */
function visible(text) {
  const signs = { " ": "\u2423", "\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d", "\u007f": "\u2421" };
  return Array.from(text, (sign) => signs[sign] ?? (sign < " " ? String.fromCharCode(0x2400 + sign.charCodeAt(0)) : sign)).join("");
}

/** A canvas of this size in CSS pixels, cleared, sharp on any screen. */
function prepared(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const [across, down] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width !== across || canvas.height !== down) {
    [canvas.width, canvas.height] = [across, down];
    canvas.style.height = `${height}px`;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return pen;
}

/** Where tokens begin .. end - 1 stand between two margins. */
function scaleOf(width, begin, end, narrow) {
  const [left, right] = narrow ? [38, 44] : [104, 62];
  const step = Math.max(0, width - left - right) / Math.max(1, end - begin);
  return { left, right, step, begin, end, x: (token) => left + (token - begin + 0.5) * step };
}

const tokenAt = (scale, x) =>
  Math.max(scale.begin, Math.min(scale.end - 1, scale.begin + Math.floor((x - scale.left) / scale.step)));

const STRIP = 50, GAP = 12, AXIS = 24;

/** What a strip spans: a gate 0 to 1, h and g -1 to 1, and c, which has no bound, what it reaches in this part. */
function rangeOf(quantity, source, place, scale) {
  if (!SIGNED.has(quantity)) return [0, 1];
  if (quantity !== "c") return [-1, 1];
  let [low, high] = [-0.05, 0.05];
  for (let token = scale.begin; token < scale.end; token++) {
    const value = source.value(place.layer, quantity, place.row, token);
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return [low, high];
}

/** Each quantity of one unit as a strip over time; `view` has the scale, the chosen token, and each token's text. */
function drawLines(canvas, source, quantities, place, view, colours) {
  const width = canvas.clientWidth;
  const height = quantities.length * (STRIP + GAP) + AXIS;
  const pen = prepared(canvas, width, height);
  const { scale, token } = view;
  pen.font = `12px ${colours.mono}`;
  pen.textBaseline = "middle";
  quantities.forEach((quantity, number) => {
    const top = number * (STRIP + GAP) + GAP / 2;
    const [low, high] = rangeOf(quantity, source, place, scale);
    const y = (value) => top + STRIP * (1 - (Math.max(low, Math.min(high, value)) - low) / (high - low));
    pen.fillStyle = colours.grid;
    pen.fillRect(scale.left, y(0) - 0.5, width - scale.left - scale.right, 1);
    if (!SIGNED.has(quantity)) pen.fillRect(scale.left, y(1) - 0.5, width - scale.left - scale.right, 1);
    strip(pen, scale, y, (at) => source.value(place.layer, quantity, place.row, at), colours[quantity]);
    pen.textAlign = "left";
    pen.fillStyle = colours[quantity];
    pen.font = `650 13px ${colours.mono}`;
    pen.fillText(quantity, 4, y(low + (high - low) / 2));
    pen.font = `12px ${colours.sans}`;
    pen.fillStyle = colours.muted;
    if (scale.left > 60) pen.fillText(NAMES[quantity], 20, y(low + (high - low) / 2));
    pen.fillStyle = colours.ink;
    pen.font = `12px ${colours.mono}`;
    pen.fillText(signed(source.value(place.layer, quantity, place.row, token)), width - scale.right + 6, y(low + (high - low) / 2));
  });
  cursor(pen, scale, token, height - AXIS, colours);
  symbols(pen, view, height - AXIS / 2, colours);
}

const signed = (value) => (value < 0 ? "\u2212" : "") + Math.abs(value).toFixed(2);

function strip(pen, scale, y, value, colour) {
  // More tokens than pixels: what lies between the least and the most of each pixel.
  const every = Math.max(1, Math.floor(0.5 / scale.step));
  pen.beginPath();
  for (let token = scale.begin; token < scale.end; token += every) {
    let [low, high] = [Infinity, -Infinity];
    for (let near = token; near < Math.min(token + every, scale.end); near++) {
      low = Math.min(low, value(near));
      high = Math.max(high, value(near));
    }
    pen.lineTo(scale.x(token), y(low));
    if (high > low) pen.lineTo(scale.x(token), y(high));
  }
  pen.strokeStyle = colour;
  pen.lineWidth = 1.6;
  pen.lineJoin = "round";
  pen.stroke();
  pen.lineTo(scale.x(scale.end - 1), y(0));
  pen.lineTo(scale.x(scale.begin), y(0));
  pen.closePath();
  pen.globalAlpha = 0.16;
  pen.fillStyle = colour;
  pen.fill();
  pen.globalAlpha = 1;
}

function cursor(pen, scale, token, height, colours) {
  if (token < scale.begin || token >= scale.end) return;
  const width = Math.max(1.5, scale.step);
  pen.globalAlpha = 0.13;
  pen.fillStyle = colours.ink;
  pen.fillRect(scale.x(token) - width / 2, 0, width, height);
  pen.globalAlpha = 1;
}

/** The text along the axis, where a token has the room for its first characters. */
function symbols(pen, { scale, token, label }, y, colours) {
  if (scale.step < 7) return;
  pen.textAlign = "center";
  for (let at = scale.begin; at < scale.end; at++) {
    const shown = Array.from(visible(label(at))).slice(0, Math.max(1, Math.floor(scale.step / 7.5))).join("");
    pen.fillStyle = at === token ? colours.ink : colours.muted;
    pen.font = `${at === token ? "700 14px" : "12px"} ${colours.mono}`;
    pen.fillText(shown, scale.x(at), y);
  }
}

const BAND = 12;

/** Rows of units over time. `heat`: layer, quantity, rows, chosen, height of a row, bars (0 to 1 of each row), band. */
function drawHeat(canvas, source, heat, view, theme, colours) {
  const width = canvas.clientWidth;
  const { scale, token } = view;
  const top = heat.band ? BAND + 6 : 0;
  const height = top + heat.rows.length * heat.height + AXIS;
  const pen = prepared(canvas, width, height);
  const inner = width - scale.left - scale.right;
  if (heat.band) band(pen, scale, heat.band, colours);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(picture(source, heat, scale, inner, theme), scale.left, top, inner, heat.rows.length * heat.height);
  pen.textBaseline = "middle";
  heat.rows.forEach((row, number) => {
    const y = top + number * heat.height;
    const chosen = row === heat.chosen;
    pen.globalAlpha = chosen ? 1 : 0.5;
    pen.fillStyle = colours.accent;
    const most = scale.left - 10;
    pen.fillRect(scale.left - 4 - most * heat.bars[number], y + 0.5, most * heat.bars[number], Math.max(1, heat.height - 1));
    pen.globalAlpha = 1;
    if (chosen) {
      pen.strokeStyle = colours.ink;
      pen.lineWidth = 1.5;
      pen.strokeRect(scale.left - 0.75, y - 0.75, inner + 1.5, heat.height + 1.5);
      pen.font = `700 12px ${colours.mono}`;
      pen.textAlign = "left";
      pen.fillStyle = colours.ink;
      pen.fillText(heat.name(row), width - scale.right + 4, y + heat.height / 2);
    }
  });
  cursor(pen, scale, token, height - AXIS, colours);
  symbols(pen, view, height - AXIS / 2, colours);
}

function band(pen, scale, { kinds, count }, colours) {
  pen.fillStyle = colours.ink;
  for (let token = scale.begin; token < scale.end; token++) {
    pen.globalAlpha = 0.08 + (0.8 * kinds[token]) / Math.max(1, count - 1);
    pen.fillRect(scale.left + (token - scale.begin) * scale.step, 0, scale.step + 0.3, BAND);
  }
  pen.globalAlpha = 1;
}

/** One pixel a token and row; where the screen has fewer pixels than tokens, their mean. */
function picture(source, heat, scale, width, theme) {
  const tokens = scale.end - scale.begin;
  const columns = Math.max(1, Math.min(tokens, Math.round(width * (window.devicePixelRatio || 1))));
  const image = new ImageData(columns, Math.max(1, heat.rows.length));
  const pixels = image.data;
  const ramp = rampOf(theme, heat.quantity);
  heat.rows.forEach((row, number) => {
    for (let column = 0; column < columns; column++) {
      const first = scale.begin + Math.floor((column * tokens) / columns);
      const last = scale.begin + Math.max(Math.floor(((column + 1) * tokens) / columns), first - scale.begin + 1);
      let sum = 0;
      for (let token = first; token < last; token++) {
        sum += position(heat.quantity, source.value(heat.layer, heat.quantity, row, token));
      }
      const [red, green, blue] = ramp[Math.round(sum / (last - first))];
      const at = 4 * (number * columns + column);
      pixels[at] = red;
      pixels[at + 1] = green;
      pixels[at + 2] = blue;
      pixels[at + 3] = 255;
    }
  });
  const sheet = document.createElement("canvas");
  [sheet.width, sheet.height] = [image.width, image.height];
  sheet.getContext("2d").putImageData(image, 0, 0);
  return sheet;
}

/** The page's own colours, as its style sheet has them for the theme. */
function coloursOf(element) {
  const style = getComputedStyle(element);
  const names = ["ink", "muted", "grid", "accent", "mono", ...Object.keys(NAMES)];
  const colours = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  return { ...colours, sans: style.fontFamily };
}
