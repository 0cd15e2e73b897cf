// The selected window: what it sounds and looks like, what the model expected, and where they differ.

function openDetail(data) {
  const LEFT = 54, BARS = 62, MOST_DB = 20, holder = $("pictures");
  const around_s = Math.max(0.5, 2 * META.window_s);
  let current = -1, panels = [], cursor = null, busy = 0;

  // One picture with its axes; the last one carries the seconds.
  function panel(caption, { ramp: texts, low, high, unit }, last, bars) {
    const figure = element("figure"), line = element("figcaption"), scale = element("canvas"), canvas = element("canvas");
    line.className = "ramp";
    line.append(element("span", caption), element("span", low), scale, element("span", `${high} ${unit}`));
    canvas.style.height = `${(last ? 24 : 4) + 118}px`;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", caption);
    figure.append(line, canvas);
    holder.append(figure);
    drawRamp(scale, texts);
    return { canvas, last, bars, image: null };
  }

  function lay(hasExpected) {
    holder.replaceChildren();
    const [low, high] = pictures.range.map((value) => String(Math.round(value)).replace("-", "\u2212"));
    const level = { ramp: pictureRamp.texts, low, high, unit: "dB" };
    panels = [panel("Heard", level, !hasExpected, data.residual !== null)];
    if (!hasExpected) return;
    panels.push(panel("Expected", level, false, false));
    const error = { ramp: errorRamp().texts, low: `\u2212${MOST_DB}`, high: `+${MOST_DB}`, unit: "dB" };
    panels.push(panel("Difference", error, true, false));
  }

  function drawPanel({ canvas, last, bars, image }) {
    const { context, width, height } = fitted(canvas), right = width - (data.residual ? BARS : 6);
    const plot = { x: LEFT, y: 2, w: right - LEFT, h: height - (last ? 24 : 4) - 2 };
    context.imageSmoothingEnabled = false;
    if (image) context.drawImage(image, plot.x, plot.y, plot.w, plot.h);
    else {
      context.fillStyle = css("hover");
      context.fillRect(plot.x, plot.y, plot.w, plot.h);
    }
    context.fillStyle = css("soft");
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "right";
    const y = (row) => plot.y + plot.h - (row + 0.5) / pictures.n_rows * plot.h;
    for (const { hz, at } of pictures.ticks(plot.h)) {
      context.fillRect(LEFT - 4, Math.round(y(at)), 4, 1);
      context.fillText(shownHz(hz), LEFT - 7, Math.max(10, Math.min(plot.y + plot.h, y(at) + 4)));
    }
    const x = (s) => plot.x + (s - META.picture.first_s) / pictures.seconds * plot.w;
    if (last) drawSeconds(context, x, plot);
    if (bars) drawBars(context, plot, y);
    if (cursor !== null && x(cursor) >= plot.x && x(cursor) <= plot.x + plot.w) {
      context.fillStyle = "#fff";
      context.fillRect(x(cursor), plot.y, 1.5, plot.h);
    }
  }

  function drawSeconds(context, x, plot) {
    context.textAlign = "center";
    const end = META.picture.first_s + pictures.seconds;
    for (const s of niceTicks(META.picture.first_s, end, plot.w / 52)) {
      context.fillRect(Math.round(x(s)), plot.y + plot.h, 1, 4);
      context.fillText(`${+s.toPrecision(4)} s`, x(s), plot.y + plot.h + 16);
    }
  }

  // Each band's share of the score, beside the rows it belongs to.
  function drawBars(context, plot, y) {
    const high = plot.h / pictures.n_rows;
    context.fillStyle = css("alarm");
    for (let row = 0; row < pictures.n_rows; row++) {
      const share = data.residual[current * pictures.n_rows + row] / 255;
      context.fillRect(plot.x + plot.w + 5, y(row) - high / 2, share * (BARS - 8), Math.max(0.6, high - 0.4));
    }
  }

  function facts(i) {
    const rows = [["score", shownNumber(data.score[i]), "big"], ["in normal sound", shownP(data.log_p[i])],
      ["rank", `${(data.rank[i] + 1).toLocaleString("en")} of ${data.n.toLocaleString("en")}`],
      ["cluster", String(data.cluster[i] + 1)]];
    META.facets.slice(1).forEach((facet, f) => {
      const value = facet.values[data.facets[f + 1][i]];
      if (value !== "unknown") rows.push([facet.name, value]);
    });
    $("facts").replaceChildren(...rows.map(([name, value, style]) => {
      const box = element("div");
      box.append(element("dt", name), element("dd", value, style ? { class: style } : {}));
      return box;
    }));
  }

  function carried(i) {
    const parts = [];
    for (let k = 0; data.bands && k < 4; k++) {
      const [low, high, share] = data.bands.subarray((i * 4 + k) * 3, (i * 4 + k) * 3 + 3);
      if (share > 0) parts.push(`${Math.round(100 * share)} % in ${shownHz(low)} to ${shownHz(high)}`);
    }
    $("carried").textContent = parts.length ? `What carried the score: ${parts.join(", ")}.` : "";
  }

  async function show(i) {
    current = i;
    cursor = null;
    const row = META.recordings[data.recording[i]], start = data.start_s[i];
    $("where").textContent = row.name;
    $("when").textContent = `${shownTime(start)} to ${shownTime(start + META.window_s)} of ${shownTime(Math.round(row.duration_s * 10) / 10)}, score ${shownNumber(data.score[i])}`;
    $("rank").textContent = `${(data.rank[i] + 1).toLocaleString("en")} / ${data.n.toLocaleString("en")}`;
    [$("back").disabled, $("next").disabled] = [data.rank[i] === 0, data.rank[i] === data.n - 1];
    facts(i);
    carried(i);
    const playable = sound.has(data.recording[i], start);
    $("play").disabled = !playable;
    $("sound-note").textContent = playable ? "" : "The sound of this stretch is not on the page.";
    const mine = ++busy, picture = await pictures.get(data.picture[i]);
    if (mine !== busy) return;
    if (!panels.length) lay(pictures.has_expected);
    panels.forEach((one) => { one.image = null; });
    if (picture) {
      panels[0].image = pictures.ofLevels(picture.sound);
      if (picture.expected) {
        panels[1].image = pictures.ofLevels(picture.expected);
        panels[2].image = pictures.ofError(picture, MOST_DB);
      }
    } else $("sound-note").textContent += " No picture of this window is on the page.";
    redraw();
  }

  function redraw() {
    panels.forEach(drawPanel);
  }

  function label() {
    const [sign, word] = sound.busy ? ["\u25a0", " Stop"] : ["\u25b6", " Play"];
    $("play").replaceChildren(element("span", sign, { "aria-hidden": "true" }), word);
  }

  async function play() {
    if (sound.busy) return sound.stop();
    if (current < 0 || $("play").disabled) return undefined;
    const done = () => {
      label();
      cursor = null;
      redraw();
    };
    try {
      const begun = sound.play(data.recording[current], data.start_s[current], {
        around_s: $("around").checked ? around_s : 0, onAt: (s) => { cursor = s; redraw(); }, onDone: done,
      });
      label();
      await begun;
    } catch (error) {
      done();
      $("sound-note").textContent = `This browser cannot play it: ${error.message}`;
    }
    return undefined;
  }

  $("around-s").textContent = `\u00b1 ${+around_s.toPrecision(2)} s`;
  $("around").setAttribute("aria-label", `Play ${+around_s.toPrecision(2)} s before and behind as well`);
  new ResizeObserver(redraw).observe(holder);
  return {
    show, play, redraw,
    repaint() {  // in the colours of the other theme
      if (panels.length) { panels = []; show(current); }
    },
    get current() { return current; },
  };
}

function drawRamp(canvas, texts) {
  [canvas.width, canvas.height] = [256, 1];
  const context = canvas.getContext("2d");
  texts.forEach((text, i) => { context.fillStyle = text; context.fillRect(i, 0, 1, 1); });
}
