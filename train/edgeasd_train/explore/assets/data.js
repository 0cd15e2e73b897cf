"use strict";
// What the page carries, unpacked when it is needed. Everything lies in script elements that no browser runs.

const $ = (id) => document.getElementById(id);
const META = JSON.parse($("meta").textContent);

const KINDS = {
  float32: Float32Array, float64: Float64Array, uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, int32: Int32Array,
};

function bytesOf(element) {
  const text = atob(element.textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// Returns the array of that name, or null where the page has none.
async function column(name) {
  const element = $(name);
  if (!element) return null;
  const unpacked = new Blob([bytesOf(element)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(unpacked).arrayBuffer();
  return new KINDS[element.dataset.kind](buffer);
}

async function columns() {
  const names = ["recording", "start_s", "score", "log_p", "places", "cluster", "picture", "timeline", "residual", "bands"];
  const found = await Promise.all(names.map(column));
  const data = Object.fromEntries(names.map((name, i) => [name, found[i]]));
  data.facets = await Promise.all(META.facets.map((_, i) => column(`facet-${i}`)));
  data.n = data.score.length;
  data.byScore = Uint32Array.from(data.score, (_, i) => i).sort((a, b) => data.score[b] - data.score[a]);
  data.rank = new Uint32Array(data.n);
  data.byScore.forEach((window, rank) => { data.rank[window] = rank; });
  return data;
}

// How numbers and times are written, everywhere.
function shownTime(s) {
  const whole = Math.floor(s + 1e-6), rest = s - whole;
  const tenths = Math.abs(rest) < 0.005 ? "" : rest.toFixed(rest * 10 % 1 < 0.05 || rest * 10 % 1 > 0.95 ? 1 : 2).slice(1);
  const parts = [Math.floor(whole / 60) % 60, whole % 60].map((part) => String(part).padStart(2, "0"));
  return (whole >= 3600 ? `${Math.floor(whole / 3600)}:` : "") + parts.join(":") + tenths;
}

function shownLength(s) {
  if (s < 120) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
  return s < 7200 ? `${(s / 60).toFixed(s < 600 ? 1 : 0)} min` : `${(s / 3600).toFixed(1)} h`;
}

function shownNumber(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(2) : String(+value.toPrecision(4));
}

function shownP(logP) {
  if (logP > -1) return (10 ** logP).toFixed(2);
  const odds = 10 ** -logP;
  if (odds < 1e6) return `1 in ${Math.round(odds).toLocaleString("en")}`;
  const raised = [...String(Math.round(-logP))].map((digit) => "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"[digit]);
  return `1 in 10${raised.join("")}`;
}

function shownHz(hz) {
  return hz >= 1000 ? `${+(hz / 1000).toPrecision(hz >= 10000 ? 3 : 2)} kHz` : `${Math.round(hz)} Hz`;
}

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== null && text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// Fits a canvas to its place on the screen and returns its context in CSS pixels, cleared.
function fitted(canvas) {
  const ratio = Math.min(2, window.devicePixelRatio || 1), width = canvas.clientWidth, height = canvas.clientHeight;
  const wide = Math.max(1, Math.round(width * ratio)), high = Math.max(1, Math.round(height * ratio));
  if (canvas.width !== wide || canvas.height !== high) [canvas.width, canvas.height] = [wide, high];
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height, ratio };
}
