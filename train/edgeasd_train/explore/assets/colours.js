// Colours: of the theme, of groups, and of numbers.

const GROUPS = {  // told apart by most colour-blind eyes, on light and on dark
  light: ["#3b6fb0", "#d9822b", "#3f9a6d", "#b8407b", "#7a5fb5", "#8a6d3b", "#2a9db0", "#c4472b", "#8f9a2f", "#6b7280"],
  dark: ["#74a9e6", "#f0a458", "#6cc497", "#e580b0", "#ab92e3", "#c4a26b", "#63c8d8", "#f08a70", "#c2cc62", "#a3acb8"],
};

const RAMPS = {  // stops of perceptually even ramps
  score: ["#2d1160", "#5b2a8c", "#8a3c86", "#b9516f", "#e06e52", "#f29b45", "#f6cf5b"],
  scoreLight: ["#c9d3e0", "#9db8d8", "#6f97c9", "#6a6fb5", "#8a4597", "#b0306a", "#cf2a2a"],
  picture: ["#000004", "#1b0c41", "#4a0c6b", "#781c6d", "#a52c60", "#cf4446", "#ed6925", "#fb9b06", "#f7d13d", "#fcffa4"],
  error: ["#1f6f8b", "#5ba3b5", "#b9d3d6", "#f3f1ec", "#f2c3a5", "#e07b54", "#b5332a"],
  errorDark: ["#7fd0e8", "#3f8ea5", "#23505e", "#1d2126", "#5e3527", "#c0613c", "#ffa583"],
};

const dark = () => document.documentElement.dataset.theme === "dark";
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function rgb(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

// Returns 256 colours as one Uint32Array of ABGR pixels, and as text.
function ramp(stops) {
  const pixels = new Uint32Array(256), texts = [], colours = stops.map(rgb);
  for (let i = 0; i < 256; i++) {
    const at = i / 255 * (stops.length - 1), k = Math.min(stops.length - 2, Math.floor(at)), f = at - k;
    const [r, g, b] = colours[k].map((low, c) => Math.round(low + (colours[k + 1][c] - low) * f));
    pixels[i] = 0xff000000 | b << 16 | g << 8 | r;
    texts.push(`#${[r, g, b].map((c) => c.toString(16).padStart(2, "0")).join("")}`);
  }
  return { pixels, texts };
}

const group = (code) => {
  const colours = GROUPS[dark() ? "dark" : "light"];
  return colours[code % colours.length];
};
const scoreRamp = () => ramp(RAMPS[dark() ? "score" : "scoreLight"]);
const errorRamp = () => ramp(RAMPS[dark() ? "errorDark" : "error"]);
const pictureRamp = ramp(RAMPS.picture);

// Returns where a score lies between the lowest and the highest, 0 to 1: logarithmic where scores allow, and the lowest
// tenth shares one end.
function scoreScale(data) {
  const low = data.score[data.byScore[Math.floor(0.9 * (data.n - 1))]], high = data.score[data.byScore[0]];
  return { at: shareOf(low, high, low > 0), low, high };
}

function shareOf(low, high, log) {
  const map = log ? (x) => Math.log(Math.max(x, low)) : (x) => x, from = map(low), span = map(high) - from || 1;
  return (score) => Math.max(0, Math.min(1, (map(score) - from) / span));
}
