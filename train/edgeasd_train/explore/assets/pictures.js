// Spectrograms: unpacked block by block, drawn on one scale.

const pictures = (() => {
  const { n_kinds, n_frames, n_rows, block, low_db, step_db, dark_db, high_db, hop_s, centres_hz } = META.picture;
  const blocks = new Map(), size = n_frames * n_rows;

  async function unpack(number) {
    const bytes = await column(`pictures-${number}`);
    for (let first = 0; first < bytes.length; first += size) {
      for (let i = first + n_rows; i < first + size; i++) bytes[i] += bytes[i - n_rows];  // wraps around at 256
    }
    return bytes;
  }

  // Returns { sound, expected } of a picture as levels, time first; expected is null where the model gives none.
  async function get(number) {
    if (number < 0) return null;
    const which = Math.floor(number / block), within = number % block;
    if (!blocks.has(which)) blocks.set(which, unpack(which));
    const bytes = await blocks.get(which), n = bytes.length / size / n_kinds;
    const kind = (k) => bytes.subarray((k * n + within) * size, (k * n + within + 1) * size);
    return { sound: kind(0), expected: n_kinds > 1 ? kind(1) : null };
  }

  // Returns a canvas with one pixel per value; `pixel` gives the colour of each, low frequencies at the bottom.
  function paint(pixel) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [n_frames, n_rows];
    const context = canvas.getContext("2d"), image = context.createImageData(n_frames, n_rows);
    const pixels = new Uint32Array(image.data.buffer);
    for (let t = 0; t < n_frames; t++) {
      for (let row = 0; row < n_rows; row++) pixels[(n_rows - 1 - row) * n_frames + t] = pixel(t * n_rows + row);
    }
    context.putImageData(image, 0, 0);
    return canvas;
  }

  const shade = new Uint8Array(256).map((_, level) =>
    Math.max(0, Math.min(255, (low_db + level * step_db - dark_db) / (high_db - dark_db) * 255)));
  const ofLevels = (levels) => paint((i) => pictureRamp.pixels[shade[levels[i]]]);

  function ofError({ sound, expected }, most_db) {
    const { pixels } = errorRamp();
    return paint((i) => {
      const error = (sound[i] - expected[i]) * step_db / most_db;
      return pixels[Math.max(0, Math.min(255, Math.round(127.5 + 127.5 * error)))];
    });
  }

  // Returns the row, from 0, at which a frequency lies; between the centres by proportion.
  function rowOf(hz) {
    let k = 1;
    while (k < n_rows - 1 && centres_hz[k] < hz) k++;
    if (n_rows < 2) return 0;
    return k - 1 + (hz - centres_hz[k - 1]) / (centres_hz[k] - centres_hz[k - 1]);
  }

  // Returns frequencies worth a label, the most telling first, as long as there is room between them.
  function ticks(height) {
    const found = [];
    for (const hz of [1000, 4000, 2000, 8000, 500, 16000, 32000, 250, 100, 64000, 6000, 3000, 12000, 24000, 50, 128000]) {
      const at = rowOf(hz), room = 17 / height * n_rows;
      if (at >= -0.5 && at <= n_rows - 0.5 && found.every((other) => Math.abs(other.at - at) >= room)) found.push({ hz, at });
    }
    return found;
  }

  return { get, ofLevels, ofError, rowOf, ticks, n_rows, n_frames, seconds: n_frames * hop_s, centres_hz,
    range: [dark_db, high_db], has_expected: n_kinds > 1 };
})();
