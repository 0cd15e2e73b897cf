// Charts: the histogram of scores, and scores over time.

function niceTicks(low, high, room) {
  const step0 = (high - low) / Math.max(1, room), power = 10 ** Math.floor(Math.log10(step0 || 1));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= step0) || 1, found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(k * step);
  return found;
}

// Ticks of a time axis, s: round in minutes and hours, not in tens.
function timeTicks(end, room) {
  const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];
  const step = steps.find((s) => s >= end / Math.max(1, room)) || 604800, found = [];
  for (let k = 0; k * step < end; k++) found.push(k * step);
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const m of [1, 2, 5]) {
      const value = m * 10 ** power;
      if (value >= low && value <= high) found.push(value);
    }
  }
  return found;
}

function drawHistogram(canvas, budget, score) {
  const { context, width, height } = fitted(canvas), { edges, plain, marked, p, log } = META.histogram;
  const left = 8, right = width - 8, top = 26, bottom = height - 34, font = "12px system-ui, sans-serif";
  const map = log ? Math.log : (x) => x, low = map(edges[0]), high = map(edges[edges.length - 1]);
  const x = (value) => left + (map(value) - low) / (high - low) * (right - left);
  const most = Math.max(...plain.map((count, i) => count + marked[i]), 1);
  const y = (count) => count ? bottom - (Math.log1p(count) / Math.log1p(most)) * (bottom - top) : bottom;  // few must be seen
  context.font = font;
  plain.forEach((count, i) => {
    const from = x(edges[i]) + 0.5, wide = Math.max(1, x(edges[i + 1]) - x(edges[i]) - 1), all = count + marked[i];
    if (!all) return;
    context.fillStyle = css("plain");
    context.fillRect(from, y(all), wide, bottom - y(all));
    context.fillStyle = css("event");  // its share of the height, since the scale is logarithmic
    const share = (bottom - y(all)) * marked[i] / all;
    context.fillRect(from, bottom - share, wide, share);
  });
  context.fillStyle = context.strokeStyle = css("soft");
  context.fillRect(left, bottom, right - left, 1);
  context.textAlign = "center";
  let last = -Infinity;
  for (const value of log ? logTicks(edges[0], edges[edges.length - 1]) : niceTicks(low, high, width / 90)) {
    if (x(value) - last < 44) continue;
    last = x(value);
    context.fillText(shownNumber(value), Math.max(14, Math.min(width - 14, last)), bottom + 15);
  }
  context.fillText("score", (left + right) / 2, height - 3);
  last = -Infinity;
  for (let power = -1; power > -12; power--) {  // where normal sound comes once in so many windows
    let i = p.findIndex((value) => value <= 10 ** power);
    if (i < 1) continue;
    const f = (Math.log10(p[i - 1]) - power) / (Math.log10(p[i - 1]) - Math.log10(p[i]) || 1), at = x(edges[i - 1]) + f * (x(edges[i]) - x(edges[i - 1]));
    if (at - last < 62) continue;
    last = at;
    context.fillRect(at, top - 8, 1, 5);
    context.fillText(`p ${10 ** power >= 0.001 ? 10 ** power : `1e${power}`}`, Math.max(24, Math.min(width - 24, at)), 12);
  }
  rule(context, Math.min(right, Math.max(left, x(Math.max(edges[0], budget.score)))), top - 6, bottom, css("alarm"));
  if (score !== null) rule(context, x(score), top - 2, bottom, css("ink"));
  const n = marked.reduce((a, b) => a + b, 0);
  canvas.setAttribute("aria-label", `Histogram of ${META.n_windows} scores, from ${shownNumber(edges[0])} to ` +
    `${shownNumber(edges[edges.length - 1])}` + (n ? `; ${n} windows hold an annotated event` : ""));
}

function rule(context, x, top, bottom, colour) {
  context.fillStyle = colour;
  context.fillRect(Math.round(x) - 1, top, 2, bottom - top);
}

// One line per recording: the highest score of each pixel, annotated events behind it, the threshold across.
function timeline(number, data, first, { budget, cursor }) {
  const row = META.recordings[number], holder = element("div", null, { class: "timeline" }), head = element("div");
  head.append(element("span", row.name), element("span", `${shownLength(row.duration_s)}, highest ${shownNumber(row.most)}`));
  const canvas = element("canvas", null, { role: "img", "aria-label": `Scores of ${row.name} over time` });
  holder.append(head, canvas);
  const step = META.hop_s * META.pool, scale = scoreScale(data), bottomPad = 14;

  function draw() {
    const { context, width, height } = fitted(canvas), base = height - bottomPad;
    const x = (s) => s / row.duration_s * width, y = (score) => base - 1 - scale.at(score) * (base - 5);
    context.fillStyle = css("map");
    context.fillRect(0, 0, width, base);
    context.fillStyle = css("event");
    context.globalAlpha = 0.4;
    for (const [onset, offset] of row.events) context.fillRect(x(onset), 0, Math.max(1.5, x(offset) - x(onset)), base);
    context.globalAlpha = 1;
    const high = new Float32Array(Math.ceil(width) + 1).fill(NaN);
    for (let i = 0; i < row.n_points; i++) {
      const from = Math.floor(x(i * step)), to = Math.max(from, Math.ceil(x((i + 1) * step)) - 1), score = data.timeline[first + i];
      for (let pixel = from; pixel <= Math.min(to, width); pixel++) if (!(high[pixel] >= score)) high[pixel] = score;
    }
    const limit = budget().score;
    for (let pixel = 0; pixel < width; pixel++) {
      if (Number.isNaN(high[pixel])) continue;
      context.fillStyle = high[pixel] >= limit ? css("alarm") : css("plain");
      context.fillRect(pixel, y(high[pixel]), 1, base - y(high[pixel]));
    }
    context.fillStyle = css("alarm");
    context.globalAlpha = 0.6;
    if (limit <= scale.high) context.fillRect(0, Math.round(y(limit)), width, 1);
    context.globalAlpha = 1;
    context.fillStyle = css("soft");
    context.font = "11px system-ui, sans-serif";
    for (const s of timeTicks(row.duration_s, width / 80)) {
      context.fillRect(x(s), base, 1, 3);
      context.fillText(shownTime(s), Math.min(x(s) + 3, width - 34), height - 2);
    }
    const at = cursor();
    if (at && at.recording === number) rule(context, Math.min(width - 1, Math.max(1, x(at.start))), 0, base, css("ink"));
  }

  const secondsAt = (event) => {
    const box = canvas.getBoundingClientRect();
    return (event.clientX - box.left) / box.width * row.duration_s;
  };
  const eventAt = (s) => {
    const near = row.duration_s / (canvas.clientWidth || 1) * 3;
    const found = row.events.find(([onset, offset]) => s >= onset - near && s <= offset + near);
    return found ? ` - ${found[2] || "event"}` : "";
  };
  canvas.addEventListener("pointermove", (event) => { canvas.title = shownTime(secondsAt(event)) + eventAt(secondsAt(event)); });
  return { holder, canvas, draw, secondsAt };
}
