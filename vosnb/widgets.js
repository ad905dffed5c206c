// The editor's half in the browser: one plain ES module, no build step. It draws what the kernel sends and asks for what a person does.
//
// Requests are numbered and stay in the list `requests` until an answer (`reply_to`) says that they were carried out, so that none is
// lost where the page sends less often than a person clicks. What was clicked is drawn at once, as a ghost, until its answer comes.

const CSS = `
.vosnb{outline:none;font:13px/1.4 system-ui,sans-serif;color:#222;background:#fafafa;border:1px solid #ccc;border-radius:6px;
  padding:8px;max-width:1100px;user-select:none;-webkit-user-select:none}
.vosnb:focus-within{border-color:#1976d2}
.vosnb .row{display:flex;flex-wrap:wrap;gap:4px;align-items:center;margin:3px 0}
.vosnb button{font:inherit;color:inherit;background:#fff;border:1px solid #bbb;border-radius:4px;padding:2px 6px;min-height:26px;cursor:pointer}
.vosnb button:hover:enabled{background:#eef4fb}.vosnb button:disabled{opacity:.4;cursor:default}
.vosnb button.on{background:#1976d2;border-color:#1976d2;color:#fff}
.vosnb .object{display:inline-flex;align-items:center;gap:5px;border:2px solid transparent;border-radius:14px;padding:1px 8px;background:#eee;cursor:pointer}
.vosnb .object.on{border-color:#1976d2;background:#fff}
.vosnb .object input[type=color]{width:16px;height:16px;padding:0;border:0;background:none;cursor:pointer}
.vosnb .object input[type=text]{font:inherit;color:inherit;width:7em;border:0;background:none;outline:none;cursor:pointer}
.vosnb .object input[type=text]:focus{background:#fff;cursor:text;user-select:text}
.vosnb .object .x{cursor:pointer;opacity:.5}.vosnb .object .x:hover{opacity:1}
.vosnb .stage{position:relative;overflow:hidden;background:#333;cursor:crosshair;touch-action:none;border-radius:3px}
.vosnb .stage.background{cursor:cell}.vosnb .stage.hand{cursor:grab}
.vosnb .inner{position:relative;transform-origin:0 0}
.vosnb .inner canvas{position:absolute;left:0;top:0;width:100%;height:100%}
.vosnb .ribbon{display:block;width:100%;height:26px;cursor:pointer;touch-action:none;border-radius:3px}
.vosnb .gap{flex:1}.vosnb .quiet{opacity:.65}.vosnb .error{color:#b00020}
.vosnb progress{width:90px;height:12px}
.vosnb select,.vosnb .number{font:inherit;color:inherit;background:#fff;border:1px solid #bbb;border-radius:4px;min-height:26px}
.vosnb .number{width:5em}
`;
const FRAMES = 48;  // decoded ones that are kept
const DRAG = 4;     // CSS pixels: a shorter one is a click

function element(tag, attributes = {}, ...children) {
  const { dataset, ...rest } = attributes;
  const made = Object.assign(document.createElement(tag), rest);
  Object.assign(made.dataset, dataset || {});
  made.append(...children);
  return made;
}

function render({ model, el }) {
  const root = element("div", { className: "vosnb", tabIndex: 0 });
  root.setAttribute("data-lm-suppress-shortcuts", "true");  // JupyterLab's and Notebook's own keys stay quiet in here
  root.append(element("style", { textContent: CSS }));

  // -- asking the kernel -------------------------------------------------------------------------------------------------

  const view = () => model.get("view"), status = () => model.get("status");
  let number = Math.max(model.get("reply_to"), ...model.get("requests").map((r) => r.seq), 0);
  const since = new Map();  // number of a request → when it was made
  let ghosts = [];          // what was clicked and not answered yet

  function ask(kind, more = {}) {
    number = Math.max(number, model.get("reply_to"), ...model.get("requests").map((r) => r.seq)) + 1;
    const open = model.get("requests").filter((r) => r.seq > model.get("reply_to"));
    since.set(number, performance.now());
    model.set("requests", [...open, { seq: number, kind, ...more }]);
    model.save_changes();
    return number;
  }

  // -- what there is -----------------------------------------------------------------------------------------------------

  let background = false, hand = false, playing = false, zoom = 1, left = 0, top = 0, drag = null;
  let shown = -1, wanted = -1;   // the frame on the canvas; the one that was asked for last
  const frames = new Map();      // frame → ImageBitmap, the last used at the end

  const button = (label, title, click, name) => {
    const made = element("button", { type: "button", textContent: label, title, dataset: { name: name || label } });
    made.addEventListener("click", () => { click(); root.focus({ preventScroll: true }); });
    return made;
  };
  const canvases = ["picture", "labels", "prompts"].map((name) => element("canvas", { className: name }));
  const [picture, labels, prompts] = canvases;
  const inner = element("div", { className: "inner" }, ...canvases);
  const stage = element("div", { className: "stage" }, inner);
  const objects = element("span", { className: "row objects" });
  const ribbon = element("canvas", { className: "ribbon", title: "Frames: height is confidence, triangles are prompts" });
  const at = element("input", { type: "number", className: "number", min: 0, title: "Frame" });
  const of = element("span", { className: "quiet" });
  const bar = element("progress", { max: 1, value: 0 });
  const said = element("span", { className: "said" });
  const exports = element("select", { title: "What to write" });

  const sides = button("● object", "What a left click means (T); a right, Alt or Shift click is always the background", () => side(!background), "side");
  const undo = button("↶", "Undo (Ctrl+Z)", () => ask("undo"), "undo");
  const redo = button("↷", "Redo (Ctrl+Shift+Z)", () => ask("redo"), "redo");
  const play = button("▶", "Play (Space)", () => run(!playing), "play");
  const stop = button("■ Stop", "Stop (Esc)", () => ask("stop"), "stop");
  const hands = button("move", "Move the picture (or the middle mouse button)", () => { hand = !hand; controls(); }, "hand");

  root.append(
    element("div", { className: "row" }, objects, button("+", "Another object", () => ask("active", { obj: null }), "add"),
      element("span", { className: "gap" }), sides, undo, redo,
      button("Clear frame", "Takes back everything said on this frame", () => ask("clear", { frame: shown }), "clear"),
      button("Clear all", "Takes back everything said", () => ask("clear", { frame: null }), "clear-all")),
    stage, ribbon,
    element("div", { className: "row" }, play, button("◂", "Back (←; with Shift 10)", () => step(-1), "back"),
      button("▸", "On (→; with Shift 10)", () => step(1), "on"), at, of, element("span", { className: "gap" }),
      element("span", { className: "quiet", textContent: "Propagate" }),
      button("◀ backward", "To the first frame", () => ask("propagate", { direction: "backward" }), "backward"),
      button("both", "Both ways", () => ask("propagate", { direction: "both" }), "both"),
      button("forward ▶", "To the last frame", () => ask("propagate", { direction: "forward" }), "forward"), stop, bar,
      element("span", { className: "gap" }), exports,
      button("Export", "Writes it beside the notebook", () => ask("export", { what: exports.value }), "export")),
    element("div", { className: "row" }, said, element("span", { className: "gap" }),
      button("−", "Smaller", () => zoomed(zoom / 1.4), "smaller"), button("+", "Larger (wheel)", () => zoomed(zoom * 1.4), "larger"),
      button("⤢", "The whole picture", () => { zoom = 1; left = top = 0; place(); }, "fit"), hands));
  el.append(root);

  // -- drawing -----------------------------------------------------------------------------------------------------------

  async function bitmap(bytes, type) {
    return bytes && bytes.byteLength ? createImageBitmap(new Blob([bytes], { type })) : null;
  }

  let turn = 0;
  async function update() {
    const mine = ++turn, v = view(), reply = model.get("reply_to");
    const [frame, mask] = await Promise.all([
      v.image === v.frame && !frames.has(v.frame) ? bitmap(model.get("image"), "image/jpeg") : frames.get(v.frame),
      bitmap(model.get("labels"), "image/png"),
    ]);
    if (frame) {
      frames.delete(v.frame);
      frames.set(v.frame, frame);
      if (frames.size > FRAMES) frames.delete(frames.keys().next().value);
    }
    if (mine !== turn) return;  // a later message overtook this one
    if (!frame) { look(v.frame); return; }
    for (const canvas of [picture, labels]) {
      if (canvas.width !== frame.width || canvas.height !== frame.height) { canvas.width = frame.width; canvas.height = frame.height; }
    }
    picture.getContext("2d").drawImage(frame, 0, 0);
    const over = labels.getContext("2d");
    over.clearRect(0, 0, labels.width, labels.height);
    if (mask) over.drawImage(mask, 0, 0, labels.width, labels.height);
    ghosts = ghosts.filter((g) => g.seq > reply);
    shown = v.frame;
    if (![...since.keys()].some((seq) => seq > reply)) wanted = shown;
    place(); people(); controls(); timeline();
    const asked = [...since].filter(([seq]) => seq <= reply);
    requestAnimationFrame(() => {
      const now = performance.now();
      for (const [seq, then] of asked) { root.dataset.ms = (now - then).toFixed(1); since.delete(seq); }
      Object.assign(root.dataset, { reply, frame: v.frame, tick: model.get("tick") });
      root.dispatchEvent(new CustomEvent("vosnb-painted", { detail: { reply, frame: v.frame } }));
    });
  }

  function place() {  // keeps the picture's shape, its zoom, and its edges outside of the stage's
    const v = view(), width = stage.clientWidth, height = width * v.height / v.width;
    if (!width) return;
    stage.style.height = `${height}px`;
    inner.style.width = `${width}px`;
    inner.style.height = `${height}px`;
    left = Math.min(0, Math.max(width * (1 - zoom), left));
    top = Math.min(0, Math.max(height * (1 - zoom), top));
    inner.style.transform = `translate(${left}px,${top}px) scale(${zoom})`;
    picture.style.imageRendering = labels.style.imageRendering = zoom > 3 ? "pixelated" : "auto";
    draw();
  }

  function zoomed(to, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
    to = Math.min(16, Math.max(1, to));
    left = x - (x - left) * to / zoom;
    top = y - (y - top) * to / zoom;
    zoom = to;
    place();
  }

  const colour = (obj) => (view().objects.find((o) => o.id === obj) || { color: "#888888" }).color;

  function draw() {  // points, boxes and the box that is being drawn, crisp at any zoom
    const v = view(), width = stage.clientWidth, dense = (window.devicePixelRatio || 1) * zoom;
    const scale = Math.min(dense * width, 4096) / v.width, dot = 6 * scale * v.width / (width * zoom), line = dot / 3;
    prompts.width = Math.round(v.width * scale);
    prompts.height = Math.round(v.height * scale);
    const c = prompts.getContext("2d");
    const box = ([x0, y0, x1, y1], obj, dash) => {
      for (const [style, wide] of [["#fff", 1.8], [colour(obj), 1]]) {
        c.setLineDash(dash ? [4 * line, 3 * line] : []);
        c.strokeStyle = style; c.lineWidth = line * wide;
        c.strokeRect(x0 * scale, y0 * scale, (x1 - x0) * scale, (y1 - y0) * scale);
      }
    };
    const point = (x, y, label, obj) => {
      c.setLineDash([]);
      c.beginPath(); c.arc(x * scale, y * scale, dot, 0, 7);
      c.fillStyle = label ? colour(obj) : "#fff"; c.fill();
      c.lineWidth = line; c.strokeStyle = label ? "#fff" : colour(obj); c.stroke();
      c.beginPath();
      c.moveTo(x * scale - dot / 2, y * scale); c.lineTo(x * scale + dot / 2, y * scale);
      if (label) { c.moveTo(x * scale, y * scale - dot / 2); c.lineTo(x * scale, y * scale + dot / 2); }
      c.strokeStyle = label ? "#fff" : "#d00"; c.stroke();
    };
    const here = v.prompts[String(shown)] || [];
    for (const p of here) {
      if (p.box) box(p.box, p.obj, false);
      for (const [x, y, label] of p.points) point(x, y, label, p.obj);
    }
    for (const g of ghosts) if (g.frame === shown) g.box ? box(g.box, g.obj, true) : point(g.x, g.y, g.label, g.obj);
    if (drag && drag.box) box(drag.box, view().active, true);
  }

  let listed = "";
  function people() {  // the objects, as chips
    const v = view(), now = JSON.stringify([v.objects, v.active]);
    if (now === listed) return;
    listed = now;
    const held = root.contains(document.activeElement);
    const all = v.objects.some((o) => o.id === v.active) ? v.objects
      : [...v.objects, { id: v.active, name: `object ${v.active}`, color: "#888888" }].sort((a, b) => a.id - b.id);
    objects.replaceChildren(...all.map((o) => {
      const tint = element("input", { type: "color", value: o.color, title: "Colour" });
      tint.addEventListener("change", () => ask("describe", { obj: o.id, color: tint.value }));
      const name = element("input", { type: "text", value: o.name, title: "Double click to rename", readOnly: true, size: 8 });
      name.addEventListener("dblclick", () => { name.readOnly = false; name.select(); });
      name.addEventListener("blur", () => { name.readOnly = true; if (name.value !== o.name) ask("describe", { obj: o.id, name: name.value }); });
      name.addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === "Escape") { if (e.key === "Escape") name.value = o.name; root.focus(); } });
      const gone = element("span", { className: "x", textContent: "✕", title: "Delete this object on all frames", dataset: { name: "delete" } });
      gone.addEventListener("click", (e) => { e.stopPropagation(); ask("delete", { obj: o.id }); root.focus({ preventScroll: true }); });
      const chip = element("span", { className: `object${o.id === v.active ? " on" : ""}`, title: `Object ${o.id}${o.id < 10 ? ` (key ${o.id})` : ""}`, dataset: { obj: o.id } },
        tint, element("b", { textContent: o.id }), name, gone);
      chip.addEventListener("click", (e) => { if (e.target !== tint && name.readOnly) { choose(o.id); root.focus({ preventScroll: true }); } });
      return chip;
    }));
    if (held && !root.contains(document.activeElement)) root.focus({ preventScroll: true });
  }

  function controls() {
    const v = view(), s = status();
    undo.disabled = !v.undo;
    redo.disabled = !v.redo;
    stop.disabled = !s.working;
    play.textContent = playing ? "❚❚" : "▶";
    sides.textContent = background ? "○ background" : "● object";
    sides.classList.toggle("on", background);
    hands.classList.toggle("on", hand);
    stage.classList.toggle("background", background);
    stage.classList.toggle("hand", hand);
    if (document.activeElement !== at) at.value = wanted;
    at.max = v.frames - 1;
    of.textContent = `of ${v.frames - 1}`;
    bar.style.display = s.working ? "" : "none";
    bar.value = s.total ? s.done / s.total : 0;
    said.className = s.error ? "said error" : "said quiet";
    said.textContent = s.error || (s.working ? `propagating ${s.direction}: ${s.done} of ${s.total} frames` : s.said)
      || "Left click: object. Right, Alt or Shift click: background. Drag: a box. 1 … 9: objects. Ctrl+Z: undo.";
    if (exports.options.length !== s.exports.length) exports.replaceChildren(...s.exports.map((e) => element("option", { textContent: e, value: e })));
  }

  function timeline() {  // a bar per frame, as high as it is sure; where prompts are; where we are
    const v = view(), known = model.get("ribbon"), width = ribbon.width = Math.max(1, ribbon.clientWidth), height = ribbon.height = 26;
    const c = ribbon.getContext("2d"), wide = width / v.frames;
    c.fillStyle = "#e4e4e4"; c.fillRect(0, 0, width, height);
    for (let t = 0; t < v.frames && t < known.byteLength; t++) {
      const byte = known.getUint8(t), value = byte & 127;
      if (!value) continue;
      const sure = value === 102 ? 1 : (value - 1) / 100, low = value !== 102 && sure < 0.7;
      c.globalAlpha = byte > 127 ? 0.35 : 1;
      c.fillStyle = value === 102 ? "#90a4ae" : low ? "#e65100" : "#2e7d32";
      c.fillRect(t * wide, height - 2 - (height - 10) * sure, Math.max(wide - (wide > 4), 0.8), (height - 10) * sure + 2);
    }
    c.globalAlpha = 1; c.fillStyle = "#1565c0";
    for (const t of model.get("marks")) {
      const x = (t + 0.5) * wide;
      c.beginPath(); c.moveTo(x - 4, 0); c.lineTo(x + 4, 0); c.lineTo(x, 7); c.fill();
    }
    const x = (wanted + 0.5) * wide;
    c.fillStyle = "#000"; c.fillRect(x - 1, 0, 2, height);
  }

  // -- what a person does ------------------------------------------------------------------------------------------------

  function side(to) { background = to; controls(); }
  function choose(obj) { ask("active", { obj }); }

  function look(frame) {
    const v = view();
    wanted = Math.min(Math.max(Math.round(frame), 0), v.frames - 1);
    ask("look", { frame: wanted, have: frames.has(wanted) });
    timeline();
  }

  function step(by) {
    run(false);
    look(wanted + by);
  }

  async function run(on) {
    if (on === playing) return;
    playing = on;
    controls();
    while (playing && root.isConnected) {
      const before = performance.now(), next = wanted + 1 < view().frames ? wanted + 1 : 0;
      const painted = new Promise((done) => { root.addEventListener("vosnb-painted", done, { once: true }); setTimeout(done, 1000); });
      look(next);
      await painted;
      const rest = 1000 / view().fps - (performance.now() - before);
      if (rest > 0) await new Promise((done) => setTimeout(done, rest));
    }
  }

  function where(event) {  // pixels of the original frame
    const r = inner.getBoundingClientRect(), v = view();
    const within = (a, size) => Math.min(Math.max(a, 0), size);
    return [within((event.clientX - r.left) / r.width * v.width, v.width), within((event.clientY - r.top) / r.height * v.height, v.height)];
  }
  const short = (a) => Math.round(a * 10) / 10;

  stage.addEventListener("pointerdown", (e) => {
    root.focus({ preventScroll: true });
    e.preventDefault(); e.stopPropagation();
    if (shown < 0 || drag || e.button > 2) return;
    run(false);
    stage.setPointerCapture(e.pointerId);
    const move = hand || e.button === 1;
    const label = e.button === 2 || e.altKey || e.shiftKey ? 0 : Number(!background);
    drag = { move, label, x: e.clientX, y: e.clientY, from: where(e), left, top, box: null };
  });
  stage.addEventListener("pointermove", (e) => {
    if (!drag) return;
    const far = Math.hypot(e.clientX - drag.x, e.clientY - drag.y);
    if (drag.move) {
      left = drag.left + e.clientX - drag.x; top = drag.top + e.clientY - drag.y;
      place();
    } else if (drag.box || (far > DRAG && drag.label)) {
      const to = where(e), [x0, x1] = [drag.from[0], to[0]].sort((a, b) => a - b), [y0, y1] = [drag.from[1], to[1]].sort((a, b) => a - b);
      drag.box = [x0, y0, x1, y1].map(short);
      draw();
    }
  });
  stage.addEventListener("pointerup", (e) => {
    if (!drag) return;
    e.preventDefault(); e.stopPropagation();
    const { move, label, box, from } = drag, obj = view().active, frame = shown;
    drag = null;
    if (move) return;
    if (box) {
      if (box[2] > box[0] && box[3] > box[1]) ghosts.push({ seq: ask("box", { frame, obj, xyxy: box }), frame, obj, box });
    } else {
      const v = view(), x = Math.min(short(from[0]), v.width - 0.1), y = Math.min(short(from[1]), v.height - 0.1);
      ghosts.push({ seq: ask("point", { frame, obj, x, y, label }), frame, obj, x, y, label });
    }
    draw();
  });
  stage.addEventListener("pointercancel", () => { drag = null; draw(); });
  for (const kind of ["contextmenu", "auxclick", "dblclick"]) {
    root.addEventListener(kind, (e) => { if (e.target.tagName !== "INPUT") e.preventDefault(); e.stopPropagation(); });
  }
  for (const kind of ["mousedown", "mouseup", "click"]) stage.addEventListener(kind, (e) => e.stopPropagation());
  stage.addEventListener("wheel", (e) => {
    if (!root.contains(document.activeElement)) return;  // it scrolls the page, until the editor is in use
    e.preventDefault(); e.stopPropagation();
    const r = stage.getBoundingClientRect();
    zoomed(zoom * 1.2 ** -Math.sign(e.deltaY), e.clientX - r.left, e.clientY - r.top);
  }, { passive: false });

  const scrub = (e) => look((e.clientX - ribbon.getBoundingClientRect().left) / ribbon.clientWidth * view().frames - 0.5);
  let scrubbing = false, coming = null;
  ribbon.addEventListener("pointerdown", (e) => {
    e.preventDefault(); e.stopPropagation();
    root.focus({ preventScroll: true });
    run(false);
    scrubbing = true;
    ribbon.setPointerCapture(e.pointerId);
    scrub(e);
  });
  ribbon.addEventListener("pointermove", (e) => {  // at most one request per picture on the screen
    if (!scrubbing) return;
    if (coming === null) requestAnimationFrame(() => { scrub(coming); coming = null; });
    coming = e;
  });
  for (const kind of ["pointerup", "pointercancel"]) ribbon.addEventListener(kind, () => { scrubbing = false; });
  at.addEventListener("change", () => { look(Number(at.value)); root.focus({ preventScroll: true }); });

  root.addEventListener("keydown", (e) => {
    e.stopPropagation();
    if (["INPUT", "SELECT"].includes(e.target.tagName) && !e.target.readOnly) return;
    const command = e.ctrlKey || e.metaKey, key = e.key.toLowerCase();
    const actions = command ? { z: () => ask(e.shiftKey ? "redo" : "undo"), y: () => ask("redo") } : {
      arrowleft: () => step(e.shiftKey ? -10 : -1), arrowright: () => step(e.shiftKey ? 10 : 1),
      home: () => step(-Infinity), end: () => step(Infinity), " ": () => run(!playing), t: () => side(!background),
      u: () => ask("undo"), backspace: () => ask("undo"), delete: () => ask("remove", { frame: shown, obj: view().active }),
      escape: () => { run(false); status().working ? ask("stop") : root.blur(); }, "+": () => ask("active", { obj: null }),
    };
    const act = !command && /^[1-9]$/.test(key) ? () => choose(Number(key)) : actions[key];
    if (act) { e.preventDefault(); act(); }
  });
  for (const kind of ["keyup", "keypress"]) root.addEventListener(kind, (e) => e.stopPropagation());

  const sized = new ResizeObserver(() => { place(); timeline(); });
  sized.observe(stage);
  model.on("change:tick", update);
  wanted = view().frame;
  update();
  look(wanted);  // so that the kernel knows early on which way our requests come
  return () => { playing = false; sized.disconnect(); model.off("change:tick", update); };
}

export default { render };
