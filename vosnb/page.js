// The page's editor. Gradio gives `element`, `trigger`, `props` and `watch`; the server is told what was done and answers with `view`
// (what is said and found, the masks of a frame as a PNG) and `picture` (the frame itself). Coordinates are the film's own pixels.
const make = (tag, name, more = {}) => Object.assign(document.createElement(tag), { className: name, ...more });
const root = element.querySelector(".vb");
root.tabIndex = 0;

const empty = { open: 0, frames: 0, width: 16, height: 9, frame: 0, marks: [], objects: [], known: [], prompted: [], text: "" };
let view = empty; // the server's last word
let frame = 0; // the one that is wanted
let active = 1; // the object that is prompted
let label = 1; // what a left click says: 1 on the object, 0 not on it
let drag = null; // {x0, y0, x1, y1, id} in pixels, while the button is down
let hover = null;
let playing = false;
const pictures = new Map(); // frame → Image; the last ones seen
const line = []; // what is still to be told, in order
let told = 0; // number of the last message
let waiting = 0; // number of the message that no answer came to, or 0
let overdue = 0;
let edited = false; // whether that message was an edit
let answered = 0; // number of the last edit that is shown

// -- parts --------------------------------------------------------------------------------------------------------------
const bar = make("div", "vb-bar");
const button = (text, title, act, name = "") => {
  const b = make("button", `vb-button ${name}`, { type: "button", textContent: text, title });
  b.onclick = () => {
    act();
    root.focus({ preventScroll: true }); // so that the keys go on working
  };
  return b;
};
const fg = button("+ object", "A left click is on the object (a right click or Alt never is)", () => choose(1), "vb-fg");
const bg = button("− not object", "A left click is not on the object: for touch pads", () => choose(0), "vb-bg");
const mode = make("span", "vb-group");
mode.append(fg, bg);
const undo = button("↶ Undo", "Ctrl+Z", () => tell("edit", { do: "undo" }), "vb-undo");
const redo = button("↷ Redo", "Ctrl+Shift+Z", () => tell("edit", { do: "redo" }), "vb-redo");
const clear = button("Clear frame", "Takes back all that was said on this frame", () => tell("edit", { do: "clear" }), "vb-clear");
const show = make("label", "vb-check", { title: "Hide the masks to see the picture (M)" });
const showing = make("input", "", { type: "checkbox", checked: true });
show.append(showing, " masks");
showing.onchange = () => paint();
bar.append(mode, undo, redo, clear, show);

const stage = make("div", "vb-stage");
const [base, masks, marks] = ["vb-picture", "vb-masks", "vb-marks"].map((name) => make("canvas", name));
const hint = make("div", "vb-empty", { innerHTML: "<b>Open a video</b><span>or try the made-up clip, then click on what you want to follow</span>" });
hint.onclick = () => document.querySelector("#upload input[type=file]")?.click();
stage.append(base, masks, marks, hint);

const time = make("div", "vb-time");
const play = button("▶", "Play (space)", () => setPlaying(!playing), "vb-play");
const slider = make("input", "vb-slider", { type: "range", min: 0, max: 0, value: 0 });
slider.setAttribute("aria-label", "frame");
const track = make("div", "vb-track");
const ribbon = make("canvas", "vb-ribbon", { width: 800, height: 10, title: "Green: found, the darker the surer. Orange: less sure. Marks: frames with clicks." });
track.append(slider, ribbon);
const counter = make("span", "vb-counter");
time.append(play, track, counter);

const objects = make("div", "vb-objects");
const go = make("div", "vb-go");
const follow = button("Follow through the film", "Finds the objects on the other frames", () => start(), "vb-follow");
const stop = button("■ Stop", "Ends after the frame at hand; what was found stays", () => { pending = 0; tell("stop", { number: asked }); }, "vb-stop");
const direction = make("select", "vb-direction", { title: "Which way" });
for (const [value, text] of [["forward", "forward"], ["backward", "backward"], ["both", "both ways"]]) direction.append(make("option", "", { value, textContent: text }));
direction.onchange = () => root.focus({ preventScroll: true });
const meter = make("div", "vb-meter");
const filled = make("div", "vb-filled");
meter.append(filled);
const status = make("div", "vb-status");
status.setAttribute("role", "status");
go.append(follow, direction, stop, meter);
const help = make("div", "vb-help", {
  innerHTML: "<b>click</b> on the object · <b>right click</b> or <b>Alt+click</b> not on it · <b>drag</b> a box · <b>1–9</b> object · <b>← →</b> frame · <b>space</b> play · <b>Ctrl+Z</b> undo",
});
root.append(bar, stage, time, objects, go, status, help);

// -- talking to the server: one message at a time, in order; of frames to look at only the last one matters ---------------------
function tell(what, more = {}) {
  if (!view.open) return;
  if (what === "stop" || what === "follow") return trigger(what, { ...more, frame, open: view.open });
  if (what === "edit") more = { frame, ...more };
  if (what === "look") line.splice(0, line.length, ...line.filter((m) => m.what !== "look"));
  line.push({ what, more });
  next();
}
function next() {
  if (waiting || !line.length) return;
  const { what, more } = line.shift();
  waiting = ++told;
  clearTimeout(overdue);
  overdue = setTimeout(() => { waiting = 0; next(); }, 15000);
  const wanted = more.frame ?? frame;
  const message = { ...more, frame: wanted, picture: !pictures.has(wanted), number: waiting, open: view.open };
  edited = what === "edit";
  const mine = waiting, slow = edited ? "looking …" : "reading the film …";
  setTimeout(() => { if (waiting === mine && !view.running) status.textContent = slow; }, 400);
  edited ? trigger("edit", message) : trigger("look", message);
}
function look(t) {
  frame = Math.max(0, Math.min(view.frames - 1, t));
  slider.value = frame;
  if (pictures.has(frame)) paint();
  tell("look", { frame });
  counting();
}
let asked = 0; // number of the last request to follow
let pending = 0; // the same, until it is answered: it may have to wait for another visitor's film
let home = null; // the frame to come back to: while a film is followed, the newest frame is shown, until somebody wants another one
function start() {
  asked = pending = Date.now();
  home = frame;
  view = { ...view, done: 0, total: 0, error: false };
  trigger("follow", { direction: direction.value, frame, number: asked, open: view.open });
  words();
  poll();
}
let polling = 0;
function poll() {
  clearTimeout(polling);
  if (view.running || pending) polling = setTimeout(() => { if (!waiting) look(home !== null && view.at !== null ? view.at : frame); poll(); }, 250);
}

function keep(got) {
  const image = new Image();
  image.onload = () => {
    pictures.delete(got.frame);
    pictures.set(got.frame, image);
    if (pictures.size > 120) pictures.delete(pictures.keys().next().value);
    if (got.frame === frame) paint();
  };
  image.src = got.url;
}
let overlay = null; // {frame, image, answered}
watch(["view", "picture"], () => {
  const got = props.view;
  if (!got) return;
  if (got.open !== view.open) {
    pictures.clear();
    line.length = 0;
    overlay = null;
    setPlaying(false);
    frame = got.frame;
    active = got.objects[0]?.id ?? 1;
  }
  view = got;
  if (got.number && got.number === waiting) {
    waiting = 0;
    if (edited) answered = got.number;
    edited = false;
  }
  if (props.picture?.open === view.open && !pictures.has(props.picture.frame)) keep(props.picture);
  if (got.frame === frame) {
    const next = { frame, image: null, answered };
    if (got.overlay) {
      const image = new Image();
      image.onload = () => { overlay = { ...next, image }; paint(); };
      image.src = got.overlay;
    } else overlay = next;
  } else if (view.open) tell("look", { frame });
  if (!view.objects.some((o) => o.id === active) && active !== view.fresh) active = view.objects[0]?.id ?? view.fresh ?? 1;
  chips();
  words();
  paint();
  if (got.number && got.number === pending) pending = 0;
  if (view.running || pending) poll();
  else if (home !== null) {
    const back = home;
    home = null;
    look(back);
  }
  next();
});

// -- painting -----------------------------------------------------------------------------------------------------------------
const color = (id) => view.objects.find((o) => o.id === id)?.color ?? view.next ?? "#e6194b";
function paint() {
  const { width, height } = view;
  for (const c of [base, masks]) if (c.width !== width || c.height !== height) [c.width, c.height] = [width, height];
  stage.style.aspectRatio = `${width} / ${height}`;
  stage.style.setProperty("--shape", width / height);
  hint.style.display = view.open ? "none" : "";
  const picture = pictures.get(frame);
  if (view.open && picture) base.getContext("2d").drawImage(picture, 0, 0);
  if (!view.open) base.getContext("2d").clearRect(0, 0, width, height);
  const over = masks.getContext("2d");
  if (!overlay || overlay.frame === frame || !showing.checked) over.clearRect(0, 0, width, height);
  if (overlay?.image && overlay.frame === frame && showing.checked) over.drawImage(overlay.image, 0, 0);
  root.dataset.painted = overlay && overlay.frame === frame && picture ? `${view.open}:${frame}:${overlay.answered}` : "";
  points();
}
function points() {
  const scale = window.devicePixelRatio || 1, box = stage.getBoundingClientRect();
  [marks.width, marks.height] = [Math.round(box.width * scale), Math.round(box.height * scale)];
  const c = marks.getContext("2d"), s = marks.width / view.width;
  const ring = (x, y, ink, plus) => {
    c.lineWidth = 2.5 * scale;
    c.beginPath(); c.arc(x, y, 7 * scale, 0, 7); c.fillStyle = plus ? ink : "#fff"; c.fill();
    c.strokeStyle = plus ? "#fff" : ink; c.stroke();
    c.beginPath(); c.moveTo(x - 3.5 * scale, y); c.lineTo(x + 3.5 * scale, y);
    if (plus) { c.moveTo(x, y - 3.5 * scale); c.lineTo(x, y + 3.5 * scale); }
    c.strokeStyle = plus ? "#fff" : "#111"; c.lineWidth = 2 * scale; c.stroke();
  };
  const frameOf = (x0, y0, x1, y1, ink, dash) => {
    c.setLineDash(dash.map((d) => d * scale)); c.lineWidth = 3.5 * scale; c.strokeStyle = "#fff"; c.strokeRect(x0 * s, y0 * s, (x1 - x0) * s, (y1 - y0) * s);
    c.lineWidth = 2 * scale; c.strokeStyle = ink; c.strokeRect(x0 * s, y0 * s, (x1 - x0) * s, (y1 - y0) * s); c.setLineDash([]);
  };
  if (view.frame === frame) for (const m of view.marks) {
    if (m.kind === "box") frameOf(...m.xyxy, color(m.obj), []);
    if (m.kind === "point") ring(m.x * s, m.y * s, color(m.obj), m.label);
  }
  if (drag && moved(drag)) frameOf(drag.x0, drag.y0, drag.x1, drag.y1, color(active), [6, 4]);
}
function counting() {
  counter.textContent = view.open ? `frame ${frame} of ${view.frames}` : "";
  const c = ribbon.getContext("2d"), n = view.known.length, w = ribbon.width;
  c.clearRect(0, 0, w, 10);
  if (!view.open) return;
  const edge = (i) => Math.round((i * w) / n);
  view.known.forEach((sure, i) => {
    if (sure < 0) return;
    c.globalAlpha = sure >= 128 ? 0.4 : 1; // of earlier clicks
    sure &= 127;
    c.fillStyle = sure < 60 ? "#f08c2e" : `hsl(150 60% ${Math.round(62 - sure * 0.25)}%)`;
    c.fillRect(edge(i), 2, edge(i + 1) - edge(i) || 1, 6);
  });
  c.globalAlpha = 1;
  c.fillStyle = "#4361ee";
  for (const t of view.prompted) c.fillRect(Math.min(w - 4, Math.round(((t + 0.5) * w) / view.frames) - 2), 0, 4, 10);
}
function words() {
  root.classList.toggle("vb-closed", !view.open);
  slider.max = Math.max(0, view.frames - 1);
  slider.value = frame;
  const running = view.running || pending > 0;
  follow.disabled = running || !view.prompted.length;
  stop.style.display = running ? "" : "none";
  meter.style.visibility = running ? "visible" : "hidden";
  filled.style.width = view.total ? `${(100 * view.done) / view.total}%` : "0";
  undo.disabled = !view.undo; redo.disabled = !view.redo; clear.disabled = !view.marks.length;
  fg.classList.toggle("on", label === 1); bg.classList.toggle("on", label === 0);
  status.textContent = pending && !view.running && !view.error ? "waiting for its turn …" : view.text;
  status.classList.toggle("vb-error", !!view.error);
  counting();
}
function chips() {
  const held = objects.querySelector("input:focus");
  if (held) return; // somebody is typing a name
  objects.replaceChildren();
  const list = view.objects.some((o) => o.id === active) ? view.objects : [...view.objects, { id: active, name: "", color: view.next, fresh: true }];
  for (const o of view.open ? list : []) {
    const chip = make("span", `vb-chip ${o.id === active ? "on" : ""}`);
    chip.dataset.obj = o.id;
    const swatch = make("input", "vb-swatch", { type: "color", value: o.color, title: "Colour" });
    swatch.onchange = () => tell("edit", { do: "describe", obj: o.id, color: swatch.value });
    const name = make("input", "vb-name", { value: o.name, placeholder: `object ${o.id}`, maxLength: 60, size: Math.max(7, o.name.length), title: "Name" });
    name.onfocus = () => { active = o.id; objects.querySelectorAll(".vb-chip").forEach((n) => n.classList.toggle("on", n === chip)); };
    name.onchange = () => tell("edit", { do: "describe", obj: o.id, name: name.value });
    name.onkeydown = (e) => { e.stopPropagation(); if (e.key === "Enter") { name.blur(); root.focus(); } };
    chip.onpointerdown = (e) => { if (e.target === chip || e.target.tagName === "KBD") pick(o.id); };
    chip.append(swatch, make("kbd", "", { textContent: o.id }), name);
    if (!o.fresh) chip.append(button("×", "Delete this object", () => tell("edit", { do: "delete", obj: o.id }), "vb-delete"));
    objects.append(chip);
  }
  if (view.open && view.objects.some((o) => o.id === active)) objects.append(button("+ another object", "The next click begins a new object", () => pick(view.fresh), "vb-new"));
}
function pick(id) { active = id; objects.querySelector("input:focus")?.blur(); chips(); points(); }
function choose(value) { label = value; words(); }

// -- pointer and keys -----------------------------------------------------------------------------------------------------------
const at = (e) => { // as the widget does it: a tenth of a pixel, the first pixel from 0 to 1
  const box = stage.getBoundingClientRect();
  const within = (value, size) => Math.max(0, Math.min(size, Math.round(value * size * 10) / 10));
  return [within((e.clientX - box.left) / box.width, view.width), within((e.clientY - box.top) / box.height, view.height)];
};
const moved = (d) => Math.max(Math.abs(d.cx), Math.abs(d.cy)) > 5; // pixels of the screen: less is a click
stage.oncontextmenu = (e) => { e.preventDefault(); e.stopPropagation(); };
stage.onpointerdown = (e) => {
  if (!view.open || (e.button !== 0 && e.button !== 2) || !pictures.has(frame)) return;
  e.preventDefault();
  root.focus({ preventScroll: true });
  setPlaying(false);
  home = null;
  stage.setPointerCapture(e.pointerId);
  const [x, y] = at(e);
  drag = { x0: x, y0: y, x1: x, y1: y, sx: e.clientX, sy: e.clientY, cx: 0, cy: 0, from: [x, y], button: e.button, alt: e.altKey || e.shiftKey };
};
stage.onpointermove = (e) => {
  if (!drag) return;
  const [x, y] = at(e), [fx, fy] = drag.from;
  Object.assign(drag, { cx: e.clientX - drag.sx, cy: e.clientY - drag.sy, x0: Math.min(fx, x), y0: Math.min(fy, y), x1: Math.max(fx, x), y1: Math.max(fy, y) });
  points();
};
stage.onpointercancel = () => { drag = null; points(); };
stage.onpointerup = (e) => {
  if (!drag) return;
  const done = drag;
  drag = null;
  if (done.button === 0 && moved(done) && done.x1 > done.x0 && done.y1 > done.y0) {
    const mark = { obj: active, kind: "box", xyxy: [done.x0, done.y0, done.x1, done.y1] };
    view.marks = [...view.marks.filter((m) => m.kind !== "box" || m.obj !== active), mark];
    tell("edit", { do: "box", obj: active, xyxy: mark.xyxy });
  } else {
    const x = Math.min(done.from[0], view.width - 0.1), y = Math.min(done.from[1], view.height - 0.1), on = done.button === 2 || done.alt ? 0 : label;
    view.marks = [...view.marks, { obj: active, kind: "point", x, y, label: on }];
    tell("edit", { do: "point", obj: active, x, y, label: on });
  }
  points();
};
root.addEventListener("keydown", (e) => {
  if (!view.open || (e.target.tagName === "INPUT" && e.target !== slider) || e.target.tagName === "SELECT") return;
  const key = e.key, ctrl = e.ctrlKey || e.metaKey;
  const own = (t) => { home = null; look(t); };
  const acts = {
    ArrowLeft: () => own(frame - (e.shiftKey ? 10 : 1)), ArrowRight: () => own(frame + (e.shiftKey ? 10 : 1)),
    Home: () => own(0), End: () => own(view.frames - 1), " ": () => setPlaying(!playing),
    m: () => { showing.checked = !showing.checked; paint(); },
  };
  if (ctrl && key.toLowerCase() === "z") tell("edit", { do: e.shiftKey ? "redo" : "undo" });
  else if (ctrl && key.toLowerCase() === "y") tell("edit", { do: "redo" });
  else if (!ctrl && /^[1-9]$/.test(key)) pick(view.objects.some((o) => o.id === +key) ? +key : view.fresh);
  else if (!ctrl && acts[key] && !(key === " " && e.target.tagName === "BUTTON")) acts[key]();
  else return;
  e.preventDefault();
  e.stopPropagation();
});
slider.oninput = () => { setPlaying(false); home = null; look(+slider.value); };
let beat = 0;
function setPlaying(on) {
  playing = on && view.open > 0;
  if (playing) home = null;
  play.textContent = playing ? "❚❚" : "▶";
  clearInterval(beat);
  if (playing) beat = setInterval(() => { if (!waiting) look(frame + 1 < view.frames ? frame + 1 : 0); }, 1000 / Math.min(view.fps, 25));
}
new ResizeObserver(points).observe(stage);
window.addEventListener("beforeunload", (e) => { if (view.prompted.length) e.preventDefault(); }); // the clicks would be gone
words();
paint();
