// The map: a scatter of windows in two or three dimensions, on a plain canvas, which every browser draws alike.

function openMap(data, { onHover, onPick }) {
  const base = $("map"), marks = $("marks"), n = data.n;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const points = new Float32Array(3 * n);  // centred, the longest axis from -1 to 1
  const screen = new Float32Array(2 * n), depth = new Float32Array(n), order = new Uint32Array(n);
  const view = { x: 0, y: 0, zoom: 1, yaw: 0, pitch: 0, deep: 0 };  // deep: 0 is flat, 1 is all three dimensions
  const target = { yaw: 0, pitch: 0, deep: 0 };
  let look = { codes: new Uint16Array(n), colours: ["#888888"], dimmed: null };
  let picture = null, size = { width: 1, height: 1, ratio: 1 }, selected = -1, hovered = -1;
  let dirty = true, drag = null, fingers = new Map();
  const timing = { draws: 0, last_ms: 0 };

  scale();

  function scale() {
    const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
    for (let i = 0; i < 3 * n; i++) {
      const c = i % 3, value = data.places[i];
      if (value < low[c]) low[c] = value;
      if (value > high[c]) high[c] = value;
    }
    const span = Math.max(...high.map((value, c) => value - low[c]), 1e-9) / 2;
    for (let i = 0; i < 3 * n; i++) points[i] = (data.places[i] - (low[i % 3] + high[i % 3]) / 2) / span;
  }

  // Flat, the two axes may fill a stage that is no square.
  function stretch() {
    let wide = 1e-9, high = 1e-9;
    for (let i = 0; i < n; i++) {
      wide = Math.max(wide, Math.abs(points[3 * i]));
      high = Math.max(high, Math.abs(points[3 * i + 1]));
    }
    const flat = Math.min(size.width / wide, size.height / high) * 0.46;
    return flat + (Math.min(size.width, size.height) * 0.36 - flat) * view.deep;
  }

  function project() {
    const unit = stretch() * view.zoom, { deep } = view;
    const cy = Math.cos(view.yaw), sy = Math.sin(view.yaw), cp = Math.cos(view.pitch), sp = Math.sin(view.pitch);
    const ox = size.width / 2 + view.x, oy = size.height / 2 + view.y;
    for (let i = 0; i < n; i++) {
      const x = points[3 * i], y = points[3 * i + 1], z = points[3 * i + 2] * deep;
      const x1 = cy * x + sy * z, z1 = cy * z - sy * x;
      screen[2 * i] = ox + unit * x1;
      screen[2 * i + 1] = oy - unit * (cp * y - sp * z1);
      depth[i] = sp * y + cp * z1;  // towards the viewer
    }
  }

  // What is dimmed lies below, then what is far, or has a low score where colours say so: by counting into 64 layers.
  function sort() {
    const layers = new Uint32Array(130), of = new Uint8Array(n), { dimmed } = look, flat = view.deep < 0.01;
    for (let i = 0; i < n; i++) {
      const far = flat ? (look.ordered ? look.codes[i] >> 2 : 0) : Math.max(0, Math.min(63, Math.floor((depth[i] + 1.5) / 3 * 64)));
      of[i] = (dimmed && dimmed[i] ? 0 : 64) + far;
      layers[of[i] + 1]++;
    }
    for (let k = 1; k < 130; k++) layers[k] += layers[k - 1];
    for (let i = 0; i < n; i++) order[layers[of[i]]++] = i;
  }

  function radius() {
    const crowd = n > 4000 ? 2.3 : n > 1000 ? 3 : 4;
    return Math.min(9, crowd * Math.sqrt(Math.max(0.6, view.zoom)) ** 0.8);
  }

  // The pixels of one point: offsets into a picture of that width, and how much of each it covers, of 256.
  function stampOf(r, width) {
    const reach = Math.ceil(r), offsets = [], covers = [];
    for (let dy = -reach; dy <= reach; dy++) {
      for (let dx = -reach; dx <= reach; dx++) {
        const cover = Math.max(0, Math.min(1, r + 0.5 - Math.hypot(dx, dy)));
        if (cover > 0.02) { offsets.push(dy * width + dx); covers.push(cover * 256); }
      }
    }
    return { offsets: Int32Array.from(offsets), covers: Float64Array.from(covers), reach };
  }

  const packed = ([r, g, b]) => (b << 16 | g << 8 | r) >>> 0;

  // Points are mixed into the pixels by hand: without a graphics card that is many times quicker than the canvas's own
  // calls, and with one it is quick enough.
  function draw() {
    const began = performance.now(), { context, width, height, ratio } = fitted(base);
    size = { width, height, ratio };
    project();
    sort();
    const r = radius() * ratio, pad = Math.ceil(r * 1.4) + 1, wide = base.width + 2 * pad, high = base.height + 2 * pad;
    if (!picture || picture.width !== wide || picture.height !== high) picture = context.createImageData(wide, high);
    const pixels = new Uint32Array(picture.data.buffer), stamp = stampOf(r, wide), lit = look.dimmed ? stampOf(r * 1.4, wide) : stamp;
    pixels.fill((0xff000000 | packed(rgb(css("map")))) >>> 0);
    const colours = Uint32Array.from(look.colours, (colour) => packed(rgb(colour))), dim = packed(rgb(css("dim")));
    for (let k = 0; k < n; k++) {
      const i = order[k], x = Math.round(screen[2 * i] * ratio) + pad, y = Math.round(screen[2 * i + 1] * ratio) + pad;
      if (x < pad - 1 || y < pad - 1 || x > wide - pad || y > high - pad) continue;
      if (look.dimmed && look.dimmed[i]) mix(pixels, y * wide + x, stamp, dim, 0.5);
      else mix(pixels, y * wide + x, lit, colours[look.codes[i]], 0.82);
    }
    context.putImageData(picture, -pad, -pad);
    drawMarks();
    timing.draws++;
    timing.last_ms = performance.now() - began;
  }

  function mix(pixels, at, { offsets, covers }, colour, alpha) {
    const outer = colour & 0xff00ff, inner = colour & 0x00ff00;
    for (let k = 0; k < offsets.length; k++) {
      const a = covers[k] * alpha | 0, there = pixels[at + offsets[k]], left = 256 - a;
      const rb = (there & 0xff00ff) * left + outer * a, g = (there & 0x00ff00) * left + inner * a;
      pixels[at + offsets[k]] = (0xff000000 | rb >>> 8 & 0xff00ff | g >>> 8 & 0x00ff00) >>> 0;
    }
  }

  // Rings lie on a canvas of their own: pointing at something draws no points again.
  function drawMarks() {
    const { context } = fitted(marks), r = radius();
    for (const [i, colour, more] of [[hovered, css("soft"), 3], [selected, css("ink"), 5]]) {
      if (i < 0) continue;
      for (const [style, width] of [[css("map"), 5], [colour, 2]]) {
        [context.strokeStyle, context.lineWidth] = [style, width];
        context.beginPath();
        context.arc(screen[2 * i], screen[2 * i + 1], r + more, 0, 2 * Math.PI);
        context.stroke();
      }
    }
  }

  function frame() {
    if (!dirty) return;
    dirty = false;
    for (const name of ["yaw", "pitch", "deep"]) {
      const left = target[name] - view[name];
      if (Math.abs(left) < 0.004 || still) view[name] = target[name];
      else { view[name] += left * 0.22; dirty = true; }
    }
    draw();
    if (dirty) requestAnimationFrame(frame);
  }

  function redraw() {
    if (!dirty) requestAnimationFrame(frame);
    dirty = true;
  }

  function nearest(x, y, reach) {
    let found = -1, least = reach * reach;
    for (let i = 0; i < n; i++) {
      if (look.dimmed && look.dimmed[i]) continue;
      const dx = screen[2 * i] - x, dy = screen[2 * i + 1] - y, away = dx * dx + dy * dy;
      if (away < least || (away === least && depth[i] > depth[found])) [found, least] = [i, away];
    }
    return found;
  }

  function zoom(factor, x = size.width / 2, y = size.height / 2) {
    const next = Math.max(0.4, Math.min(80, view.zoom * factor)), by = next / view.zoom;
    view.x = (view.x + size.width / 2 - x) * by - size.width / 2 + x;
    view.y = (view.y + size.height / 2 - y) * by - size.height / 2 + y;
    view.zoom = next;
    redraw();
  }

  function at(event) {
    const box = marks.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  function hover(i, x, y) {
    if (i === hovered && i < 0) return;
    const changed = i !== hovered;
    hovered = i;
    marks.classList.toggle("over", i >= 0);
    if (changed) drawMarks();
    onHover(i, x, y, size);
  }

  marks.addEventListener("pointerdown", (event) => {
    marks.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, at(event));
    const [x, y] = at(event);
    drag = { x, y, moved: fingers.size > 1, turn: target.deep > 0 && !event.shiftKey && event.button === 0 };
  });
  marks.addEventListener("pointermove", (event) => {
    const [x, y] = at(event);
    if (!drag) return hover(nearest(x, y, event.pointerType === "mouse" ? 14 : 24), x, y);
    const before = [...fingers.values()];
    fingers.set(event.pointerId, [x, y]);
    if (fingers.size === 2) return pinch(before, [...fingers.values()]);
    if (Math.hypot(x - drag.x, y - drag.y) < 4 && !drag.moved) return undefined;
    hover(-1);
    if (drag.turn) {
      view.yaw = target.yaw += (x - drag.x) * 0.008;
      view.pitch = target.pitch = Math.max(-1.5, Math.min(1.5, target.pitch + (y - drag.y) * 0.008));
    } else {
      view.x += x - drag.x;
      view.y += y - drag.y;
    }
    drag = { ...drag, x, y, moved: true };
    return redraw();
  });
  const lift = (event) => {
    fingers.delete(event.pointerId);
    if (!drag || fingers.size) return;
    const { moved } = drag, [x, y] = at(event);
    drag = null;
    if (moved || event.type === "pointercancel") return;
    const found = nearest(x, y, event.pointerType === "mouse" ? 14 : 24);
    if (found >= 0) onPick(found);
  };
  marks.addEventListener("pointerup", lift);
  marks.addEventListener("pointercancel", lift);
  marks.addEventListener("pointerleave", () => { if (!drag) hover(-1); });
  marks.addEventListener("contextmenu", (event) => event.preventDefault());
  marks.addEventListener("dblclick", reset);
  marks.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-Math.max(-60, Math.min(60, event.deltaY)) * 0.004), ...at(event));
  }, { passive: false });

  function pinch([a, b], [c, d]) {
    const spread = ([p, q]) => Math.hypot(p[0] - q[0], p[1] - q[1]) || 1;
    zoom(spread([c, d]) / spread([a, b]), (c[0] + d[0]) / 2, (c[1] + d[1]) / 2);
    view.x += (c[0] + d[0] - a[0] - b[0]) / 2;
    view.y += (c[1] + d[1] - a[1] - b[1]) / 2;
    drag.moved = true;
    redraw();
  }

  function reset() {
    Object.assign(view, { x: 0, y: 0, zoom: 1 });
    Object.assign(target, target.deep ? { yaw: 0.6, pitch: 0.35 } : { yaw: 0, pitch: 0 });
    redraw();
  }

  function deepen(deep) {
    Object.assign(target, deep ? { deep: 1, yaw: 0.6, pitch: 0.35 } : { deep: 0, yaw: 0, pitch: 0 });
    Object.assign(view, { x: 0, y: 0, zoom: 1 });
    redraw();
  }

  new ResizeObserver(redraw).observe(marks);
  dirty = false;
  redraw();
  return {
    zoom, reset, deepen, redraw, timing,
    show(next) { look = next; redraw(); },
    select(i) { selected = i; drawMarks(); },
    screenOf: (i) => [screen[2 * i], screen[2 * i + 1]],
    get settled() { return !dirty; },
  };
}
