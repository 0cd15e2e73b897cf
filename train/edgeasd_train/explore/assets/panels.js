// The panels below the map: gallery, clusters, timelines, recordings, model card.

function openGallery(data, { onPick }) {
  const holder = $("gallery"), STEP = innerWidth < 600 ? 12 : 24, MOST = 240, buttons = new Map();
  const listed = oncePerSound(data, MOST);

  async function add() {
    const from = buttons.size, to = Math.min(listed.length, from + STEP);
    const made = [];
    for (const i of listed.slice(from, to)) {
      const button = element("button", null, { type: "button" });
      const canvas = element("canvas"), text = element("div"), small = element("small");
      const row = META.recordings[data.recording[i]];
      small.append(element("span", (data.rank[i] + 1).toLocaleString("en")), element("span", shownTime(data.start_s[i])), element("span", shownNumber(data.score[i])));
      text.append(element("div", row.name, { class: "name", title: row.name }), small);
      button.append(canvas, text);
      button.addEventListener("click", () => onPick(i));
      buttons.set(i, button);
      holder.append(button);
      made.push([i, canvas]);
    }
    $("more").hidden = buttons.size >= listed.length;
    for (const [i, canvas] of made) {
      const picture = await pictures.get(data.picture[i]);
      if (!picture) continue;
      const image = pictures.ofLevels(picture.sound);
      [canvas.width, canvas.height] = [image.width, image.height];
      canvas.getContext("2d").drawImage(image, 0, 0);
    }
  }

  $("more").addEventListener("click", add);
  return {
    ready: add(),
    mark(i) {
      for (const [window, button] of buttons) button.setAttribute("aria-current", String(window === i));
      if (holder.contains(document.activeElement)) buttons.get(i)?.focus();
    },
  };
}

// Returns the strangest windows, without those that overlap a stranger one: the same sound fills several windows.
function oncePerSound(data, most) {
  const listed = [], starts = new Map();
  for (const i of data.byScore) {
    if (listed.length === most) break;
    const there = starts.get(data.recording[i]) || [], start = data.start_s[i];
    if (there.some((other) => Math.abs(other - start) < META.window_s - 1e-6)) continue;
    starts.set(data.recording[i], [...there, start]);
    listed.push(i);
  }
  return listed;
}

function table(headings, rows) {
  const made = element("table"), head = element("tr"), body = element("tbody"), top = element("thead");
  head.append(...headings.map((text) => element("th", text)));
  top.append(head);
  for (const cells of rows) {
    const line = element("tr");
    for (const cell of cells) {
      const box = element("td");
      box.append(cell instanceof Node ? cell : String(cell));
      line.append(box);
    }
    body.append(line);
  }
  made.append(top, body);
  return made;
}

function fillClusters(data, budget, onPick) {
  const n = META.clusters.length, scores = Array.from({ length: n }, () => []);
  for (let i = 0; i < data.n; i++) scores[data.cluster[i]].push(data.score[i]);
  const rows = META.clusters.map((cluster, k) => {
    const name = element("span"), dot = element("span", null, { class: "dot" }), button = element("button", "typical", { type: "button" });
    dot.style.background = group(k);
    name.append(dot, ` ${k + 1}`);
    button.addEventListener("click", () => onPick(cluster.typical));
    const own = scores[k].sort((a, b) => a - b), over = own.filter((score) => score >= budget.score).length;
    return [name, own.length.toLocaleString("en"), shownNumber(own[own.length >> 1] ?? 0), over, button];
  });
  $("clusters").replaceChildren(table(["cluster", "windows", "median score", "over threshold", ""], rows));
}

function fillRecordings() {
  const MOST = 500, rows = META.recordings, any = rows.some((row) => row.events.length);
  const total = rows.reduce((sum, row) => sum + row.duration_s, 0), clipped = rows.filter((row) => row.clipped_pct > 0.01).length;
  $("corpus").textContent = `${rows.length.toLocaleString("en")} recordings, ${shownLength(total)}` +
    (clipped ? `; ${clipped} clip in more than 0.01 % of their samples` : "") +
    (rows.length > MOST ? `; the first ${MOST} are listed` : "");
  $("recordings").replaceChildren(table(
    ["recording", "length", "windows", "level dBFS", "peak dBFS", ...(any ? ["events"] : []), "median", "95 %", "highest"],
    rows.slice(0, MOST).map((row) => [row.name, shownLength(row.duration_s), row.n_windows.toLocaleString("en"), row.rms_dbfs.toFixed(1),
      row.peak_dbfs.toFixed(1), ...(any ? [row.events.length] : []), ...[row.median, row.p95, row.most].map(shownNumber)]),
  ));
}

function fillLabels(data) {
  const counts = new Map();
  for (const row of META.recordings) {
    for (const [onset, offset, label] of row.events) {
      const [n, s] = counts.get(label || "event") || [0, 0];
      counts.set(label || "event", [n + 1, s + offset - onset]);
    }
  }
  const tables = [];
  if (counts.size) {
    const rows = [...counts].sort((a, b) => b[1][0] - a[1][0]).map(([label, [n, s]]) => [label, n, shownLength(s)]);
    tables.push(table(["annotated event", "times", "in all"], rows));
  }
  META.facets.forEach((facet, f) => {
    if (f === 0 || facet.name === "event") return;
    const n = facet.values.map(() => 0);
    data.facets[f].forEach((code) => { n[code]++; });
    tables.push(table([facet.name, "windows"], facet.values.map((value, code) => [value, n[code].toLocaleString("en")])));
  });
  if (tables.length) $("labels").append(...tables);
  else $("labels").append(element("p", "Neither names nor tables say anything about these recordings.", { class: "quiet-text" }));
}

// Model cards are Markdown of headings, tables, lists and paragraphs; anything else stands as it is.
function fillCard(text) {
  const card = $("card"), blocks = text.trim().split(/\n\s*\n/);
  for (const block of blocks) {
    const lines = block.split("\n");
    if (/^#{1,3} /.test(block)) {
      const [, marks, title] = lines[0].match(/^(#{1,3}) (.*)/);
      card.append(element(`h${marks.length}`, title));
      if (lines.length > 1) card.append(element("p", lines.slice(1).join(" ")));
    } else if (lines.every((line) => line.startsWith("|"))) {
      const rows = lines.map((line) => line.split("|").slice(1, -1).map((cell) => cell.trim()));
      const body = rows.filter((row) => !row.every((cell) => /^:?-*:?$/.test(cell)));
      const made = element("table");
      for (const row of body) {
        const line = element("tr");
        line.append(...row.map((cell) => element("td", cell)));
        made.append(line);
      }
      card.append(made);
    } else if (/^[-*] /.test(block)) {
      const list = element("ul");
      for (const item of block.split(/\n(?=[-*] )/)) list.append(element("li", item.slice(2).replace(/\n\s*/g, " ")));
      card.append(list);
    } else card.append(element("p", lines.join(" ")));
  }
}
