"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const LAYERS = [
    ["none", "None"], ["flow", "Flow to tau"], ["velocity", "Velocity at tau"],
    ["uncertainty", "Uncertainty"], ["boundary", "Boundaries"],
    ["truth", "Ground truth"], ["error", "Error"],
  ];
  const SECONDS_PER_PAIR = 2, EVENT_SPAN = 0.12, KEPT = 4;
  const BRIGHTER = [220, 30, 40], DARKER = [20, 90, 235]; // events of positive, negative polarity
  const B_E = [0, 200, 255], B_M = [255, 60, 0];

  const about = JSON.parse(document.querySelector("[data-about]").textContent);
  const sources = [...document.querySelectorAll("[data-pair]")].map((e) => e.textContent);
  const decoded = new Map(); // number of a pair -> promise of its maps, the newest last
  const state = { position: 0.5, layer: "flow", playing: false, point: null, kept: false };
  let shown = null; // the decoded pair on the screen

  function fail(text) {
    $("problem").textContent = text;
    $("problem").hidden = false;
  }
  addEventListener("error", (event) => fail(`The viewer failed: ${event.message}`));
  addEventListener("unhandledrejection", (event) => fail(`The viewer failed: ${event.reason}`));

  // --- decoding -------------------------------------------------------------------------------

  function bytesOf(text) {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return bytes;
  }

  async function inflate(text) {
    const stream = new Blob([bytesOf(text)]).stream();
    const whole = new Response(stream.pipeThrough(new DecompressionStream("deflate")));
    return new Uint8Array(await whole.arrayBuffer());
  }

  // The inverse of encode_map in payload.py: [channels * height * width] numbers in whole steps.
  async function readMap(map, height, width) {
    const data = await inflate(map.data), count = map.channels * height * width;
    const codes = new Int32Array(count);
    for (let channel = 0, i = 0; channel < map.channels; channel++) {
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++, i++) {
          let folded = data[i];
          for (let b = 1, scale = 256; b < map.bytes; b++, scale *= 256) folded += scale * data[b * count + i];
          const residual = folded % 2 ? -(folded + 1) / 2 : folded / 2;
          const left = x ? codes[i - 1] : 0, above = y ? codes[i - width] : 0;
          const corner = x && y ? codes[i - width - 1] : 0;
          const low = Math.min(left, above), high = Math.max(left, above);
          codes[i] = residual + Math.min(Math.max(left + above - corner, low), high);
        }
      }
    }
    return { codes, perUnit: Math.round(1 / map.step), channels: map.channels };
  }

  // The inverse of encode_events: of each bin, pixels and whether most events brighten.
  async function readEvents(events) {
    const data = await inflate(events.data), bins = [];
    let at = 0;
    const next = () => {
      let value = 0, scale = 1, digit;
      do { digit = data[at++]; value += (digit & 127) * scale; scale *= 128; } while (digit > 127);
      return value;
    };
    for (let bin = 0; bin < events.bins; bin++) {
      const count = next(), places = new Int32Array(count), positive = new Uint8Array(count);
      for (let i = 0, place = -1; i < count; i++) {
        const value = next();
        place += Math.floor(value / 2);
        places[i] = place;
        positive[i] = value % 2;
      }
      bins.push({ places, positive });
    }
    return bins;
  }

  async function grayOf(frame, width, height) {
    if (!frame) return null;
    const image = new Image();
    image.src = `data:image/jpeg;base64,${frame}`;
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0, width, height);
    return context.getImageData(0, 0, width, height).data;
  }

  async function decode(number) {
    const pair = JSON.parse(sources[number]);
    const { width, height } = pair;
    pair.pixels = await grayOf(pair.frame, width, height);
    pair.usable = typeof DecompressionStream === "function";
    if (!pair.usable) {
      fail("This browser cannot unpack the flow (it has no DecompressionStream); frames are shown alone. The folder pictures/ shows the flow.");
      return pair;
    }
    const names = ["flow", "bend", "uncertainty", "boundary", "ground_truth", "valid"];
    await Promise.all(names.map(async (name) => {
      if (pair[name]) pair[name] = await readMap(pair[name], height, width);
    }));
    pair.bins = await readEvents(pair.events);
    return pair;
  }

  function load(number) {
    if (!decoded.has(number)) decoded.set(number, decode(number));
    const pair = decoded.get(number);
    decoded.delete(number);
    decoded.set(number, pair);
    for (const old of [...decoded.keys()].slice(0, -KEPT)) decoded.delete(old);
    return pair;
  }

  // --- trajectories ---------------------------------------------------------------------------

  const choose = (n, k) => { let c = 1; for (let i = 1; i <= k; i++) c = c * (n - k + i) / i; return c; };

  // Displacement = line * flow + sum_k bends[k] * bend_k, bend_k being P_k - (k / n) P_n.
  function weights(degree, tau, derivative) {
    const basis = (n, k) => (k < 0 || k > n ? 0 : choose(n, k) * tau ** k * (1 - tau) ** (n - k));
    const of = (k) => derivative ? degree * (basis(degree - 1, k - 1) - basis(degree - 1, k)) : basis(degree, k);
    const bends = [];
    for (let k = 1; k < degree; k++) bends.push(of(k));
    return { line: derivative ? 1 : tau, bends }; // Bernstein polynomials reproduce straight lines
  }

  function move(pair, weight, i, out) {
    const size = pair.width * pair.height, { codes, perUnit } = pair.flow;
    out[0] = weight.line * codes[i] / perUnit;
    out[1] = weight.line * codes[size + i] / perUnit;
    for (let k = 0; k < weight.bends.length; k++) {
      const scaled = weight.bends[k] / pair.bend.perUnit;
      out[0] += scaled * pair.bend.codes[2 * k * size + i];
      out[1] += scaled * pair.bend.codes[(2 * k + 1) * size + i];
    }
    return out;
  }

  const degreeOf = (pair) => pair.bend.channels / 2 + 1;

  // --- colours --------------------------------------------------------------------------------

  const wheel = (() => { // of Middlebury, as flowfuse/visualization.py has it
    const segments = [[15, 0, 1, 1], [6, 1, 0, 0], [4, 1, 2, 1], [11, 2, 1, 0], [13, 2, 0, 1], [6, 0, 2, 0]];
    const colours = [];
    for (const [count, held, changing, rises] of segments) {
      for (let i = 0; i < count; i++) {
        const colour = [0, 0, 0], ramp = Math.floor(255 * i / count);
        colour[held] = 255;
        colour[changing] = rises ? ramp : 255 - ramp;
        colours.push(colour);
      }
    }
    return colours;
  })();

  function flowColour(u, v, out) { // u, v in units of full colour
    const strength = Math.min(Math.hypot(u, v), 1);
    const position = (Math.atan2(-v, -u) / Math.PI + 1) / 2 * wheel.length;
    const low = Math.floor(position), part = position - low;
    const a = wheel[low % wheel.length], b = wheel[(low + 1) % wheel.length];
    for (let c = 0; c < 3; c++) out[c] = 255 - strength * (255 - (1 - part) * a[c] - part * b[c]);
  }

  const STOPS = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];
  function heatColour(value, out) { // inferno
    const position = Math.min(Math.max(value, 0), 1) * (STOPS.length - 1);
    const low = Math.min(Math.floor(position), STOPS.length - 2), part = position - low;
    for (let c = 0; c < 3; c++) out[c] = (1 - part) * STOPS[low][c] + part * STOPS[low + 1][c];
  }

  function percentile(values, valid) {
    const sorted = [];
    for (let i = 0; i < values.length; i += 7) if (!valid || valid[i]) sorted.push(values[i]);
    sorted.sort((a, b) => a - b);
    return sorted.length ? sorted[Math.floor(0.99 * (sorted.length - 1))] : 0;
  }

  function errorsOf(pair) {
    if (!pair.ground_truth) return null;
    if (!pair.errors) {
      const size = pair.width * pair.height, f = pair.flow.codes, g = pair.ground_truth.codes;
      pair.errors = new Float32Array(size);
      for (let i = 0; i < size; i++) {
        pair.errors[i] = Math.hypot(f[i] - g[i], f[size + i] - g[size + i]) / pair.flow.perUnit;
      }
      pair.errorRange = Math.max(percentile(pair.errors, pair.valid.codes), 0.1);
    }
    return pair.errors;
  }

  // Returns a function that colours pixel i, or null; and what the legend says.
  function painter(pair, tau) {
    const size = pair.width * pair.height, at = [0, 0], range = about.range;
    const byFlow = (weight) => (i, out) => {
      move(pair, weight, i, at);
      flowColour(at[0] / range, at[1] / range, out);
      return true;
    };
    const seconds = (pair.t1 - pair.t0) * 1e-6;
    switch (state.layer) {
      case "flow":
        return { paint: byFlow(weights(degreeOf(pair), tau, false)), wheel: `displacement from t0 to tau; rim: ${range.toPrecision(3)} px` };
      case "velocity":
        return { paint: byFlow(weights(degreeOf(pair), tau, true)), wheel: `velocity at tau; rim: ${(range / seconds).toPrecision(3)} px/s` };
      case "uncertainty": {
        const { codes, perUnit } = pair.uncertainty;
        pair.uncertaintyRange ??= Math.max(percentile(codes), 1);
        return {
          paint: (i, out) => { heatColour(codes[i] / pair.uncertaintyRange, out); return true; },
          heat: `expected error of a flow component; right: ${(pair.uncertaintyRange / perUnit).toFixed(1)} px`,
        };
      }
      case "boundary": {
        const { codes, perUnit } = pair.boundary;
        return {
          mix: (i, out) => {
            for (const [map, colour] of [[0, B_E], [1, B_M]]) {
              const share = codes[map * size + i] / perUnit;
              for (let c = 0; c < 3; c++) out[c] += share * (colour[c] - out[c]);
            }
          },
          pair: "blue: B_e, a moving edge with events; orange: B_m, a motion discontinuity",
        };
      }
      case "truth": {
        if (!pair.ground_truth) return { none: "no ground truth of this pair" };
        const { codes, perUnit } = pair.ground_truth, scale = range * perUnit;
        return {
          paint: (i, out) => {
            if (!pair.valid.codes[i]) return false;
            flowColour(codes[i] / scale, codes[size + i] / scale, out);
            return true;
          },
          wheel: `ground truth from t0 to t1; rim: ${range.toPrecision(3)} px`,
        };
      }
      case "error": {
        const errors = errorsOf(pair);
        if (!errors) return { none: "no ground truth of this pair" };
        return {
          paint: (i, out) => {
            if (!pair.valid.codes[i]) return false;
            heatColour(errors[i] / pair.errorRange, out);
            return true;
          },
          heat: `endpoint error at t1; right: ${pair.errorRange.toFixed(1)} px`,
        };
      }
    }
    return { none: "" };
  }

  // --- drawing --------------------------------------------------------------------------------

  function drawImage(pair, tau) {
    const canvas = $("image"), { width, height } = pair;
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
      $("canvases").style.setProperty("--ratio", width / height);
    }
    const context = canvas.getContext("2d"), image = context.createImageData(width, height);
    const out = image.data, colour = [0, 0, 0], base = [0, 0, 0];
    const layer = pair.usable ? painter(pair, tau) : { none: "" };
    const frame = $("frame").checked ? pair.pixels : null;
    const strength = frame ? Number($("strength").value) : 1;
    for (let i = 0, o = 0; i < width * height; i++, o += 4) {
      for (let c = 0; c < 3; c++) base[c] = frame ? frame[o + c] : 128;
      if (layer.paint && layer.paint(i, colour)) {
        for (let c = 0; c < 3; c++) base[c] += strength * (colour[c] - base[c]);
      } else if (layer.mix) {
        for (let c = 0; c < 3; c++) base[c] = 20 + 0.6 * base[c];
        layer.mix(i, base);
      }
      out[o] = base[0];
      out[o + 1] = base[1];
      out[o + 2] = base[2];
      out[o + 3] = 255;
    }
    if ($("events").checked && pair.bins) {
      const last = Math.min(Math.floor(tau * pair.bins.length), pair.bins.length - 1);
      const first = Math.max(0, Math.ceil((tau - EVENT_SPAN) * pair.bins.length));
      for (const { places, positive } of pair.bins.slice(Math.min(first, last), last + 1)) {
        for (let k = 0; k < places.length; k++) {
          const shade = positive[k] ? BRIGHTER : DARKER, o = 4 * places[k];
          for (let c = 0; c < 3; c++) out[o + c] = shade[c];
        }
      }
    }
    context.putImageData(image, 0, 0);
    drawLegend(layer);
  }

  function drawLegend(layer) {
    const text = layer.wheel || layer.heat || layer.pair || layer.none || "";
    $("caption").textContent = text;
    $("legend").hidden = !(layer.wheel || layer.heat);
    $("legend").style.display = $("legend").hidden ? "none" : "";
    const kind = layer.wheel ? "wheel" : layer.heat ? "heat" : "";
    if (!kind || $("legend").dataset.kind === kind) return;
    $("legend").dataset.kind = kind;
    const canvas = $("legend"), context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, canvas.height), colour = [0, 0, 0];
    for (let y = 0, o = 0; y < canvas.height; y++) {
      for (let x = 0; x < canvas.width; x++, o += 4) {
        const u = (x + 0.5 - canvas.width / 2) / (canvas.height / 2), v = (y + 0.5) / (canvas.height / 2) - 1;
        let inside = Math.hypot(u, v) <= 1;
        if (kind === "wheel") flowColour(u, v, colour);
        else { heatColour(x / (canvas.width - 1), colour); inside = Math.abs(v) < 0.35; }
        for (let c = 0; c < 3; c++) image.data[o + c] = colour[c];
        image.data[o + 3] = inside ? 255 : 0;
      }
    }
    context.putImageData(image, 0, 0);
  }

  function drawOverlay(pair, tau) {
    const canvas = $("overlay"), ratio = devicePixelRatio || 1;
    const box = canvas.getBoundingClientRect();
    canvas.width = Math.max(1, Math.round(box.width * ratio));
    canvas.height = Math.max(1, Math.round(box.height * ratio));
    if (!pair.usable) return;
    const context = canvas.getContext("2d"), scale = canvas.width / pair.width, at = [0, 0];
    const place = (x) => (x + 0.5) * scale; // pixel centres
    const degree = degreeOf(pair);
    const curve = (x, y, end) => {
      const i = y * pair.width + x;
      context.beginPath();
      context.moveTo(place(x), place(y));
      for (let k = 1; k <= 8; k++) {
        move(pair, weights(degree, end * k / 8, false), i, at);
        context.lineTo(place(x + at[0]), place(y + at[1]));
      }
    };
    const strokes = (width, colour) => { context.lineWidth = width * ratio; context.strokeStyle = colour; context.stroke(); };
    context.lineCap = context.lineJoin = "round";
    if ($("arrows").checked && tau > 0) {
      const step = Math.max(4, Math.round(26 * ratio / scale)); // px of the image between arrows
      const velocity = weights(degree, tau, true), heading = [0, 0];
      for (let y = Math.floor(step / 2); y < pair.height; y += step) {
        for (let x = Math.floor(step / 2); x < pair.width; x += step) {
          curve(x, y, tau);
          const tipX = place(x + at[0]), tipY = place(y + at[1]);
          move(pair, velocity, y * pair.width + x, heading);
          const length = Math.hypot(at[0], at[1]) * scale;
          if (length > 2 * ratio) {
            const angle = Math.atan2(heading[1], heading[0]), head = Math.min(5 * ratio, length / 2);
            for (const side of [-2.6, 2.6]) {
              context.moveTo(tipX, tipY);
              context.lineTo(tipX + head * Math.cos(angle + side), tipY + head * Math.sin(angle + side));
            }
          }
          strokes(2.6, "rgba(255,255,255,.75)");
          strokes(1.1, "#111");
        }
      }
    }
    if (state.point) {
      const { x, y } = state.point;
      curve(x, y, 1);
      strokes(4, "#fff");
      strokes(2, "#d0006f");
      const now = move(pair, weights(degree, tau, false), y * pair.width + x, at);
      for (const [cx, cy, radius] of [[x, y, 3], [x + now[0], y + now[1], 5]]) {
        context.beginPath();
        context.arc(place(cx), place(cy), radius * ratio, 0, 2 * Math.PI);
        context.fillStyle = "#fff";
        context.fill();
        strokes(2, "#d0006f");
      }
    }
  }

  function rows(table, entries) {
    table.replaceChildren(...entries.map(([name, value]) => {
      const row = document.createElement("tr"), head = document.createElement("th");
      const cell = document.createElement("td");
      head.textContent = name;
      cell.textContent = value;
      row.append(head, cell);
      return row;
    }));
  }

  const vector = (u, v, digits, unit) => `${u.toFixed(digits)}, ${v.toFixed(digits)} ${unit}`;

  function showNumbers(pair, tau) {
    if (!state.point || !pair.usable) {
      rows($("numbers"), [["point at a pixel", ""]]);
      return;
    }
    const { x, y } = state.point, i = y * pair.width + x, size = pair.width * pair.height;
    const value = (map, channel) => map.codes[channel * size + i] / map.perUnit;
    const at = move(pair, weights(degreeOf(pair), tau, false), i, [0, 0]);
    const speed = move(pair, weights(degreeOf(pair), tau, true), i, [0, 0]);
    const seconds = (pair.t1 - pair.t0) * 1e-6;
    const entries = [
      ["x, y", `${x}, ${y}`],
      ["flow to t1", vector(value(pair.flow, 0), value(pair.flow, 1), 2, "px")],
      ["displacement at tau", vector(at[0], at[1], 1, "px")],
      ["velocity at tau", vector(speed[0] / seconds, speed[1] / seconds, 0, "px/s")],
      ["expected error", `${value(pair.uncertainty, 0).toFixed(1)} px`],
      ["B_e, B_m", `${value(pair.boundary, 0).toFixed(2)}, ${value(pair.boundary, 1).toFixed(2)}`],
    ];
    if (pair.ground_truth) {
      const known = pair.valid.codes[i];
      entries.push(["ground truth", known ? vector(value(pair.ground_truth, 0), value(pair.ground_truth, 1), 2, "px") : "unknown"]);
      entries.push(["error", known ? `${errorsOf(pair)[i].toFixed(2)} px` : "unknown"]);
    }
    rows($("numbers"), entries);
  }

  function showMetrics(pair) {
    const found = about.metrics[pair.index], entries = [];
    const add = (name, value, digits, unit) => {
      if (typeof value === "number") entries.push([name, `${value.toFixed(digits)} ${unit}`]);
    };
    if (found) {
      add("EPE", found.flow?.epe, 3, "px");
      add("EPE of zero flow", found.zero_flow?.epe, 3, "px");
      add("off by more than 3 px", found.flow?.["3pe"], 1, "%");
      add("EPE between the frames", found.flow?.tepe, 3, "px");
      add("photometric error", found.photometric_error, 4, "");
      add("photometric error of zero flow", found.photometric_error_zero_flow, 4, "");
    }
    entries.push(["from", pair.modalities.join(" and ")]);
    entries.push(["duration", `${((pair.t1 - pair.t0) / 1000).toFixed(3)} ms`]);
    entries.push(["events", String(pair.events.count)]);
    rows($("metrics"), entries);
    $("shown").textContent = pair.events.every > 1 ? `(1 of ${pair.events.every})` : "";
  }

  const place = () => {
    const number = Math.min(Math.floor(state.position), sources.length - 1);
    return { number, tau: state.position - number };
  };

  let asked = 0;
  async function draw() {
    const mine = ++asked, { number, tau } = place();
    const pair = await load(number);
    if (mine !== asked) return; // a newer one is on its way
    if (state.point && (state.point.x >= pair.width || state.point.y >= pair.height)) state.point = null;
    shown = pair;
    drawImage(pair, tau);
    drawOverlay(pair, tau);
    showNumbers(pair, tau);
    showMetrics(pair);
    const time = pair.t0 + tau * (pair.t1 - pair.t0);
    $("when").textContent = `pair ${pair.index} (${number + 1} of ${sources.length}), tau ${tau.toFixed(2)}, ${(time * 1e-6).toFixed(4)} s`;
    document.body.dataset.drawn = String(mine);
    if (number + 1 < sources.length) load(number + 1);
  }

  // --- controls -------------------------------------------------------------------------------

  function go(position) {
    state.position = Math.min(Math.max(position, 0), sources.length);
    $("time").value = state.position;
    draw();
  }

  let before = 0;
  async function tick(now) {
    if (!state.playing) return;
    const passed = Math.min((now - before) / 1000, 0.1);
    before = now;
    let next = state.position + passed * Number($("speed").value) / SECONDS_PER_PAIR;
    if (next >= sources.length) next = 0;
    state.position = next;
    $("time").value = next;
    await draw();
    requestAnimationFrame(tick);
  }

  function play(on) {
    state.playing = on;
    $("play").textContent = on ? "❚❚" : "▶";
    $("play").setAttribute("aria-label", on ? "Pause" : "Play");
    if (on) {
      before = performance.now();
      requestAnimationFrame(tick);
    }
  }

  function chooseLayer(name) {
    const input = document.querySelector(`input[name=layer][value=${name}]`);
    if (input.disabled) return;
    state.layer = name;
    input.checked = true;
    draw();
  }

  // What no pair has cannot be chosen.
  function offerWhatIsThere() {
    const has = (name) => sources.some((text) => new RegExp(`"${name}":["{]`).test(text));
    const withhold = (input, reason) => {
      input.disabled = true;
      input.checked = false;
      input.parentElement.title = reason;
    };
    if (!has("ground_truth")) {
      for (const name of ["truth", "error"]) withhold(document.querySelector(`input[value=${name}]`), "no pair has ground truth");
    }
    if (!has("frame")) {
      withhold($("frame"), "no pair has a frame");
      $("events").checked = true;
    }
  }

  function switchTheme() {
    const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = root.dataset.theme || (dark ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  }

  function point(event, keep) {
    if (!shown || (state.kept && !keep)) return;
    const box = $("overlay").getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left) / box.width * shown.width);
    const y = Math.floor((event.clientY - box.top) / box.height * shown.height);
    const inside = x >= 0 && y >= 0 && x < shown.width && y < shown.height;
    state.point = inside ? { x, y } : null;
    const { tau } = place();
    drawOverlay(shown, tau);
    showNumbers(shown, tau);
  }

  for (const [name, label] of LAYERS) {
    const box = document.createElement("label"), input = document.createElement("input");
    input.type = "radio";
    input.name = "layer";
    input.value = name;
    input.checked = name === state.layer;
    input.addEventListener("change", () => chooseLayer(name));
    box.append(input, ` ${label}`);
    $("layers").append(box);
  }
  for (const id of ["frame", "events", "arrows"]) $(id).addEventListener("change", draw);
  $("strength").addEventListener("input", draw);
  $("time").addEventListener("input", () => go(Number($("time").value)));
  $("play").addEventListener("click", () => play(!state.playing));
  $("theme").addEventListener("click", switchTheme);
  $("help").addEventListener("click", () => $("keys").showModal());
  $("overlay").addEventListener("pointermove", (event) => point(event, false));
  $("overlay").addEventListener("pointerleave", () => {
    if (state.kept || !shown) return;
    state.point = null;
    drawOverlay(shown, place().tau);
    showNumbers(shown, place().tau);
  });
  $("overlay").addEventListener("click", (event) => {
    state.kept = !state.kept || event.pointerType === "touch";
    point(event, true);
  });
  addEventListener("resize", () => shown && drawOverlay(shown, place().tau));
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
    const own = event.target.matches?.("select, input[type=range]") ? ["ArrowLeft", "ArrowRight", "Home", "End"] : [];
    if (own.includes(event.key) && event.target !== $("time")) return;
    const { number } = place();
    const actions = {
      " ": () => play(!state.playing),
      ArrowLeft: () => go(state.position - 0.05), ArrowRight: () => go(state.position + 0.05),
      ",": () => go(number - 1), ".": () => go(number + 1),
      Home: () => go(0), End: () => go(sources.length),
      f: () => $("frame").click(), e: () => $("events").click(), a: () => $("arrows").click(),
      d: switchTheme, "?": () => $("keys").showModal(),
    };
    const layer = LAYERS[Number(event.key) - 1];
    const action = layer ? () => chooseLayer(layer[0]) : actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  $("title").textContent = document.title = about.title;
  if (!sources.length) {
    fail("There is nothing to show: no pair has flow.");
    return;
  }
  about.range = Math.max(...sources.map((text) => Number(/"range":([-+.\deE]+)/.exec(text)[1])));
  $("time").max = sources.length;
  offerWhatIsThere();
  go(state.position); // in the middle of a pair: at t0 nothing has moved yet
})();
