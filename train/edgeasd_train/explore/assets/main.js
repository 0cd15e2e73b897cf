// The page as a whole: what is selected, how it is coloured, and what a key or a click does.

(async () => {
  const root = document.documentElement, data = await columns();
  const NEUTRAL = new Set(["no event", "normal", "unknown"]), MOST_IN_LEGEND = 60, TIMELINES = 12;
  const state = { colour: "cluster", only: new Set(), budget: 0, selected: -1 };
  const night = matchMedia("(prefers-color-scheme: dark)");
  root.dataset.theme = night.matches ? "dark" : "light";

  const map = openMap(data, { onHover: tip, onPick: (i) => pick(i, { play: true }) });
  const detail = openDetail(data);
  const gallery = openGallery(data, { onPick: visit });
  const lines = openTimelines();

  header();
  colours();
  budgets();
  fillRecordings();
  fillLabels(data);
  fillCard(META.card);
  controls();
  pick(data.byScore[0]);

  function header() {
    const { bundle } = META, total = META.recordings.reduce((sum, row) => sum + row.duration_s, 0);
    $("title").textContent = META.title;
    $("summary").textContent = `${bundle.name} (${bundle.detector}) on ${META.recordings.length.toLocaleString("en")} ` +
      `recording${META.recordings.length > 1 ? "s" : ""}, ${shownLength(total)}: ${META.n_windows.toLocaleString("en")} windows of ` +
      `${+META.window_s.toPrecision(3)} s, ${+META.hop_s.toPrecision(3)} s apart`;
    if (META.notes.length) {
      $("notes").hidden = false;
      $("notes").append(...META.notes.map((note) => element("li", note)));
    }
    $("footer").textContent = `Made ${META.made_utc}. Bundle ${bundle.name}, version ${bundle.version}, sha256 ${bundle.sha256.slice(0, 16)}, ` +
      `trained ${bundle.made_utc} on ${shownLength(bundle.heard_s)}. ` +
      "Keys: left and right step through the strangest, space plays; on the map home goes to the strangest. In 3-D drag to turn, with shift to move.";
    const share = META.explained.map((value) => `${Math.round(100 * value)} %`);
    $("axes").textContent = `${META.embedding ? "embedding" : "mean log mel"}, principal axes: ${share.join(", ")} of the variance`;
  }

  // How each window is coloured now: names, codes and colours, or a scale.
  function scheme() {
    if (state.colour === "score") {
      const scale = scoreScale(data), { texts } = scoreRamp();
      return { scale, texts, codes: Uint16Array.from(data.score, (score) => Math.round(255 * scale.at(score))) };
    }
    if (state.colour === "cluster") {
      return { names: META.clusters.map((_, k) => `cluster ${k + 1}`), codes: data.cluster, texts: META.clusters.map((_, k) => group(k)) };
    }
    const f = META.facets.findIndex((facet) => facet.name === state.colour), names = META.facets[f].values;
    let next = 0;
    return { names, codes: data.facets[f], texts: names.map((name) => NEUTRAL.has(name) ? css("plain") : group(next++)) };
  }

  function colours() {
    const select = $("colour");
    if (!select.length) {
      for (const name of ["cluster", "score", ...META.facets.map((facet) => facet.name)]) select.append(new Option(name, name));
    }
    const { names, codes, texts, scale } = scheme();
    const dimmed = state.only.size ? Uint8Array.from(codes, (code) => state.only.has(code) ? 0 : 1) : null;
    map.show({ codes, colours: texts, dimmed, ordered: Boolean(scale) });
    if (scale) {
      const line = element("div", null, { class: "ramp" }), canvas = element("canvas");
      drawRamp(canvas, texts);
      line.append(element("span", shownNumber(scale.low)), canvas, element("span", shownNumber(scale.high)));
      $("legend").replaceChildren(line);
      return;
    }
    const n = names.map(() => 0);
    for (const code of codes) n[code]++;
    $("legend").replaceChildren(...names.slice(0, MOST_IN_LEGEND).map((name, code) => {
      const off = state.only.size > 0 && !state.only.has(code);
      const button = element("button", null, { type: "button", "aria-pressed": String(!off), class: off ? "off" : "" });
      const dot = element("span", null, { class: "dot" });
      dot.style.background = texts[code];
      button.append(dot, element("span", name, { class: "name", title: name }), element("small", n[code].toLocaleString("en")));
      button.addEventListener("click", (event) => {
        const alone = state.only.size === 1 && state.only.has(code);
        if (!event.shiftKey) state.only.clear();
        if (event.shiftKey && state.only.has(code)) state.only.delete(code);
        else if (!alone) state.only.add(code);
        colours();
        $("legend").children[code].focus();
      });
      return button;
    }));
    if (names.length > MOST_IN_LEGEND) $("legend").append(element("small", `and ${names.length - MOST_IN_LEGEND} more`));
  }

  function tip(i, x, y, size) {
    const box = $("tip");
    box.hidden = i < 0;
    if (i < 0) return;
    const words = META.facets.slice(1).map((facet, f) => facet.values[data.facets[f + 1][i]]).filter((word) => !NEUTRAL.has(word));
    box.replaceChildren(element("b", META.recordings[data.recording[i]].name),
      `${shownTime(data.start_s[i])}, score ${shownNumber(data.score[i])}, cluster ${data.cluster[i] + 1}${words.map((word) => `, ${word}`).join("")}`);
    box.style.left = `${Math.max(4, Math.min(x + 14, size.width - box.offsetWidth - 6))}px`;
    box.style.top = `${y + 18 + box.offsetHeight > size.height ? Math.max(4, y - box.offsetHeight - 12) : y + 16}px`;
  }

  function pick(i, { play = false } = {}) {
    sound.stop();
    state.selected = i;
    map.select(i);
    gallery.mark(i);
    const shown = detail.show(i);
    drawScores();
    lines.draw();
    if (play) detail.play();
    return shown;
  }

  // Picks a window from below the map; where there is no room for two columns, the eye is taken to it.
  function visit(i) {
    pick(i, { play: true });
    if (getComputedStyle($("detail")).position === "static") $("detail").scrollIntoView({ block: "start" });
  }

  function step(by) {
    const rank = Math.max(0, Math.min(data.n - 1, data.rank[state.selected] + by));
    if (rank !== data.rank[state.selected]) pick(data.byScore[rank]);
  }

  function budgets() {
    META.budgets.forEach((budget, k) => $("budget").append(new Option(budget.name, k)));
    state.budget = META.budgets.findIndex((budget) => budget.name === "12 an hour");
    $("budget").value = state.budget;
    $("budget").addEventListener("change", () => {
      state.budget = Number($("budget").value);
      fillClusters(data, budget(), visit);
      drawScores();
      lines.draw();
    });
    fillClusters(data, budget(), visit);
  }

  function budget() {
    return META.budgets[Math.max(0, state.budget)];
  }

  function drawScores() {
    const { score, p, extrapolation, n_over } = budget();
    drawHistogram($("histogram"), budget(), state.selected < 0 ? null : data.score[state.selected]);
    $("budget-note").textContent = `Threshold ${shownNumber(score)} (p ${shownNumber(p)}): ${n_over.toLocaleString("en")} of ` +
      `${META.n_windows.toLocaleString("en")} windows here reach it.` +
      (extrapolation > 1.05 ? ` Extrapolated ${shownNumber(+extrapolation.toPrecision(2))} times beyond the sound it was calibrated on.` : "") +
      (META.histogram.marked.some(Boolean) ? " Yellow: windows that hold an annotated event." : "");
  }

  function openTimelines() {
    const firsts = [], order = META.recordings.map((_, k) => k).sort((a, b) => META.recordings[b].most - META.recordings[a].most);
    let at = 0;
    for (const row of META.recordings) { firsts.push(at); at += row.n_points; }
    const made = [];
    const cursor = () => state.selected < 0 ? null : { recording: data.recording[state.selected], start: data.start_s[state.selected] };
    const add = () => {
      for (const number of order.slice(made.length, made.length + TIMELINES)) {
        const line = timeline(number, data, firsts[number], { budget, cursor });
        line.canvas.addEventListener("click", (event) => visit(closest(number, line.secondsAt(event))));
        $("timelines").append(line.holder);
        new ResizeObserver(line.draw).observe(line.canvas);
        made.push(line);
      }
      $("more-time").hidden = made.length >= order.length;
    };
    $("more-time").addEventListener("click", add);
    add();
    return { draw: () => made.forEach((line) => line.draw()) };
  }

  // Returns the shown window of a recording whose middle is closest to a time.
  function closest(recording, s) {
    let found = -1, least = Infinity;
    for (let i = 0; i < data.n; i++) {
      const away = Math.abs(data.start_s[i] + META.window_s / 2 - s);
      if (data.recording[i] === recording && away < least) [found, least] = [i, away];
    }
    return found < 0 ? state.selected : found;
  }

  function repaint() {
    colours();
    detail.repaint();
    fillClusters(data, budget(), visit);
    drawScores();
    lines.draw();
  }

  function controls() {
    $("colour").addEventListener("change", () => { state.colour = $("colour").value; state.only.clear(); colours(); });
    const deepen = (deep) => {
      $("flat").setAttribute("aria-pressed", String(!deep));
      $("deep").setAttribute("aria-pressed", String(deep));
      map.deepen(deep);
    };
    const turn = (theme) => { root.dataset.theme = theme; repaint(); };
    for (const [id, act] of [["flat", () => deepen(false)], ["deep", () => deepen(true)], ["closer", () => map.zoom(1.5)],
      ["farther", () => map.zoom(1 / 1.5)], ["reset", map.reset], ["back", () => step(-1)], ["next", () => step(1)],
      ["play", detail.play], ["theme", () => turn(dark() ? "light" : "dark")]]) $(id).addEventListener("click", act);
    night.addEventListener("change", () => turn(night.matches ? "dark" : "light"));
    document.addEventListener("keydown", (event) => {
      const where = event.target.closest("select, input, summary, .scroll"), onMap = event.target.id === "marks";
      if (where || event.ctrlKey || event.metaKey || event.altKey) return;
      const acts = { ArrowRight: () => step(1), ArrowLeft: () => step(-1) };
      if (onMap) Object.assign(acts, { ArrowDown: acts.ArrowRight, ArrowUp: acts.ArrowLeft, Home: () => pick(data.byScore[0]), "+": () => map.zoom(1.5), "-": () => map.zoom(1 / 1.5) });
      if (!event.target.closest("button")) acts[" "] = detail.play;
      if (!acts[event.key]) return;
      event.preventDefault();
      acts[event.key]();
    });
    new ResizeObserver(drawScores).observe($("histogram"));
  }

  await Promise.all([gallery.ready, document.fonts.ready]);
  window.explorer = { map, detail, data, sound, pick };  // for the curious, at the console
})();
