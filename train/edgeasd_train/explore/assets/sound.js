// Sound: pieces are decoded when first played, and a few are kept.

const sound = (() => {
  const decoded = new Map(), KEPT = 12;
  let context = null, playing = null, turn = 0, waiting = false;

  const pieceOf = (recording, start) => `sound-${recording}-${Math.floor(start / META.sound.piece_s + 1e-9)}`;
  const has = (recording, start) => $(pieceOf(recording, start)) !== null;

  function open() {
    if (context) return context;
    const rate = Math.max(8000, Math.min(48000, META.bundle.rate_hz));
    try {
      context = new AudioContext({ sampleRate: rate });  // decoding to a higher rate would take more memory
    } catch {
      context = new AudioContext();
    }
    return context;
  }

  // Returns the AudioBuffer of the piece in which a window lies.
  function decode(recording, start) {
    const name = pieceOf(recording, start);
    if (!decoded.has(name)) {
      decoded.set(name, open().decodeAudioData(bytesOf($(name)).buffer));
      if (decoded.size > KEPT) decoded.delete(decoded.keys().next().value);
    }
    return decoded.get(name);
  }

  function stop() {
    turn++;  // what is still being decoded shall not begin
    waiting = false;
    if (!playing) return;
    const { source, done } = playing;
    playing = null;
    source.onended = null;
    source.stop();
    done();
  }

  // Plays a window, or it with `around_s` before and behind; `onAt` hears where it is, s from the window's start.
  async function play(recording, start, { around_s = 0, onAt = () => {}, onDone = () => {} } = {}) {
    stop();
    const audio = open(), mine_turn = turn;
    waiting = true;
    const buffer = await decode(recording, start).finally(() => { if (mine_turn === turn) waiting = false; });
    if (audio.state === "suspended") await audio.resume();
    if (mine_turn !== turn) return onDone();
    const piece_start = Math.floor(start / META.sound.piece_s + 1e-9) * META.sound.piece_s;
    const from = Math.max(0, start - piece_start - around_s);
    const to = Math.min(buffer.duration, start - piece_start + META.window_s + around_s);
    const source = audio.createBufferSource(), gain = audio.createGain();
    source.buffer = buffer;
    source.connect(gain).connect(audio.destination);
    const began = audio.currentTime + 0.02;
    gain.gain.setValueAtTime(0, began);  // cut sound would click
    gain.gain.linearRampToValueAtTime(1, began + 0.01);
    gain.gain.setValueAtTime(1, Math.max(began + 0.01, began + to - from - 0.01));
    gain.gain.linearRampToValueAtTime(0, began + to - from);
    source.start(began, from, to - from);
    const mine = { source, done: onDone };
    playing = mine;
    source.onended = () => { if (playing === mine) { playing = null; onDone(); } };
    const follow = () => {
      if (playing !== mine) return;
      onAt(audio.currentTime - began + from - (start - piece_start));
      requestAnimationFrame(follow);
    };
    return follow();
  }

  return { has, decode, play, stop, get playing() { return playing !== null; }, get busy() { return waiting || playing !== null; } };
})();
