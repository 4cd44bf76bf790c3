"use strict";
// The map of a report: moves and zooms by changing the viewBox of one SVG. Works without: then the map stands still.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const map = $("map"), details = $("details"), nothing = details.innerHTML;
  const paths = [...document.querySelectorAll("#landslides path")];
  const boxes = paths.map((path) => {
    const b = path.getBBox();
    return { x: b.x * data.unit, y: b.y * data.unit, w: b.width * data.unit, h: b.height * data.unit };
  });
  const [width, height] = data.size;
  let view = { x: 0, y: 0, w: width, h: height }; // metres in the plane of the map
  let chosen = -1, shownRows = 25, order = paths.map((_, i) => i), sorted = { column: "area_m2", down: true };

  document.querySelectorAll(".off:not(.more)").forEach((e) => e.classList.remove("off"));

  // ---- view ----
  const box = () => map.getBoundingClientRect();
  const metresPerPixel = () => view.w / Math.max(box().width, 1);

  function setView(x, y, w) {
    const { width: bw, height: bh } = box();
    const aspect = bh / Math.max(bw, 1);
    const whole = Math.max(width, height / aspect) * 1.04;
    w = Math.min(Math.max(w, Math.min(data.closest, whole)), whole * 1.5);
    const h = w * aspect;
    const cx = Math.min(Math.max(x + w / 2, 0), width), cy = Math.min(Math.max(y + h / 2, 0), height);
    view = { x: cx - w / 2, y: cy - h / 2, w, h };
    map.setAttribute("viewBox", `${view.x} ${view.y} ${view.w} ${view.h}`);
    map.classList.toggle("close", data.pixel / metresPerPixel() > 1.5);
    map.classList.toggle("far", data.pixel / metresPerPixel() < 0.8);
    furnish();
  }

  function showWhole() {
    const { width: bw, height: bh } = box();
    const w = Math.max(width, (height * bw) / Math.max(bh, 1)) * 1.04;
    const h = (w * bh) / Math.max(bw, 1);
    setView(width / 2 - w / 2, height / 2 - h / 2, w);
  }

  function zoom(factor, at = centre()) {
    const w = view.w / factor;
    setView(at[0] - ((at[0] - view.x) * w) / view.w, at[1] - ((at[1] - view.y) * w) / view.w, w);
  }

  const move = (dx, dy) => setView(view.x + dx, view.y + dy, view.w);
  const centre = () => [view.x + view.w / 2, view.y + view.h / 2];
  function onMap(event) {
    const b = box();
    return [view.x + ((event.clientX - b.left) / b.width) * view.w, view.y + ((event.clientY - b.top) / b.height) * view.h];
  }

  // ---- scale bar, north arrow and cross, drawn in the map so that they stay true in print ----
  function furnish() {
    const m = metresPerPixel();
    const most = Math.min(160, box().width / 3) * m;
    const power = 10 ** Math.floor(Math.log10(most));
    const length = power * [5, 2, 1].find((n) => n * power <= most);
    const at = (id, x, y, k = m) => $(id).setAttribute("transform", `translate(${x} ${y}) scale(${k})`);
    at("scale", view.x + 16 * m, view.y + view.h - 18 * m);
    document.querySelectorAll("#scale rect").forEach((r) => {
      const part = Number(r.dataset.part), rim = Number(r.dataset.rim || 0);
      r.setAttribute("width", (length / m) * part + 2 * rim);
    });
    $("scale-text").textContent = length >= 1000 ? `${length / 1000} km` : `${length} m`;
    if ($("north")) at("north", view.x + view.w - 30 * m, view.y + 36 * m);
    at("cross", ...centre());
    if ($("parting")) {
      const x = Number($("curtain").getAttribute("x"));
      $("parting").setAttribute("transform", `translate(${x} ${view.y}) scale(${m})`);
      $("parting").toggleAttribute("hidden", x <= 0 || x >= width);
      $("parting").querySelector("line").setAttribute("y2", view.h / m);
    }
  }

  // ---- coordinates ----
  function lonLat(x, y) {
    const grid = data.lonlat;
    if (!grid) return null;
    const n = grid.count - 1;
    const u = Math.min(Math.max((x / width) * n, 0), n), v = Math.min(Math.max((y / height) * n, 0), n);
    const i = Math.min(Math.floor(u), n - 1), j = Math.min(Math.floor(v), n - 1), s = u - i, t = v - j;
    const found = [grid.lon, grid.lat].map((a) => {
      const at = (r, c) => a[r * grid.count + c];
      const corners = [at(j, i), at(j, i + 1), at(j + 1, i), at(j + 1, i + 1)];
      if (corners.some((c) => c === null)) return NaN;
      return (corners[0] * (1 - s) + corners[1] * s) * (1 - t) + (corners[2] * (1 - s) + corners[3] * s) * t;
    });
    return found.some(Number.isNaN) ? null : [((found[0] + 540) % 360) - 180, found[1]];
  }

  function words([x, y]) {
    const f = data.frame;
    const own = [f.left + x / f.scale[0], f.top - y / f.scale[1]].map((v) => v.toFixed(f.digits)).join(", ");
    const place = lonLat(x, y);
    const earth = place && `${Math.abs(place[1]).toFixed(5)}° ${place[1] < 0 ? "S" : "N"}, ` +
      `${Math.abs(place[0]).toFixed(5)}° ${place[0] < 0 ? "W" : "E"}`;
    return { own, earth };
  }

  function sayPlace(at) {
    const { own, earth } = words(at);
    $("place").textContent = [earth, `${data.frame.name}: ${own}`].filter(Boolean).join("\n");
  }

  // ---- landslides ----
  const column = (key) => data.columns.findIndex((c) => c.key === key);
  function written(c, value) {
    if (value === null) return "not known";
    if (typeof value === "boolean") return value ? "yes" : "no";
    if (typeof value !== "number") return String(value);
    const figure = value.toLocaleString("en-GB", { minimumFractionDigits: c.digits, maximumFractionDigits: c.digits });
    return c.unit === "°" ? `${figure}°` : `${figure} ${c.unit}`.trim();
  }

  function element(tag, text, attributes = {}) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    Object.entries(attributes).forEach(([k, v]) => made.setAttribute(k, v));
    return made;
  }

  function choose(i, go) {
    chosen = i;
    for (const id of ["halo", "chosen"]) $(id).setAttribute("d", i < 0 ? "" : paths[i].getAttribute("d"));
    document.querySelectorAll("#list tbody tr").forEach((r) => r.classList.toggle("chosen-row", Number(r.dataset.i) === i));
    if (i < 0) {
      details.innerHTML = nothing;
      return;
    }
    const row = data.rows[i], b = boxes[i];
    const top = element("h3", `Landslide ${row[column("id")]}`);
    const close = element("button", "×", { type: "button", "aria-label": "Close", id: "close" });
    close.addEventListener("click", () => { choose(-1); map.focus({ preventScroll: true }); });
    top.append(close);
    const list = element("dl");
    const add = (name, value, meaning) => list.append(element("dt", name, meaning ? { title: meaning } : {}), element("dd", value));
    data.columns.forEach((c, k) => c.key === "id" || add(c.label, written(c, row[k]), c.meaning));
    const middle = words([b.x + b.w / 2, b.y + b.h / 2]);
    if (middle.earth) add("Middle", middle.earth);
    add(data.frame.name, middle.own);
    const steps = element("div", undefined, { class: "steps" });
    for (const [text, act] of [["Zoom to it", () => zoomTo(i)], ["Previous", () => step(-1)], ["Next", () => step(1)]]) {
      const button = element("button", text, { type: "button" });
      button.addEventListener("click", () => { act(); refocus(text); });
      steps.append(button);
    }
    details.replaceChildren(top, list, steps);
    details.parentElement.scrollTop = 0;
    if (go) zoomTo(i);
  }

  // Details are made anew for each landslide: the button that was pressed keeps the focus
  function refocus(text) {
    [...details.querySelectorAll("button")].find((b) => b.textContent === text)?.focus();
  }

  function zoomTo(i) {
    const b = boxes[i], { width: bw, height: bh } = box();
    const w = Math.max(b.w, (b.h * bw) / Math.max(bh, 1), data.pixel * 12) * 2.2;
    setView(b.x + b.w / 2 - w / 2, b.y + b.h / 2 - (w * bh) / bw / 2, w);
    sayPlace([b.x + b.w / 2, b.y + b.h / 2]);
  }

  function step(by) {
    if (!order.length) return;
    const at = order.indexOf(chosen);
    choose(order[at < 0 ? 0 : (at + by + order.length) % order.length], true);
  }

  function nearest([x, y]) {
    const reach = 40 * metresPerPixel();
    let best = -1, least = reach;
    paths.forEach((path, i) => {
      const b = boxes[i];
      const far = Math.hypot(Math.max(b.x - x, 0, x - b.x - b.w), Math.max(b.y - y, 0, y - b.y - b.h));
      if (far > least) return;
      const inside = path.isPointInFill(new DOMPoint(x / data.unit, y / data.unit));
      if (inside || far < least || best < 0) [best, least] = [i, inside ? -1 : far];
    });
    return best;
  }

  // ---- list ----
  function drawList() {
    const body = document.querySelector("#list tbody");
    const listed = data.columns.map((c, k) => [c, k]).filter(([c]) => c.short);
    body.replaceChildren(...order.slice(0, shownRows).map((i) => {
      const row = element("tr", undefined, { "data-i": i });
      row.classList.toggle("chosen-row", i === chosen);
      for (const [c, k] of listed) {
        const value = data.rows[i][k], text = value === null ? "–" : written({ ...c, unit: "" }, value);
        const cell = element("td", c.key === "id" ? undefined : text);
        if (c.key === "id") {
          cell.append(element("button", text, { type: "button", "aria-label": `Show landslide ${text} on the map` }));
        }
        row.append(cell);
      }
      return row;
    }));
    const left = order.length - shownRows;
    $("more").classList.toggle("off", left <= 0);
    $("more").textContent = `Show ${Math.min(100, left)} more of ${left.toLocaleString("en-GB")}`;
  }

  function sortBy(key, down) {
    const k = column(key);
    sorted = { column: key, down };
    const rank = (v) => (typeof v === "boolean" ? Number(v) : v);
    order.sort((a, b) => {
      const [p, q] = [rank(data.rows[a][k]), rank(data.rows[b][k])];
      if (p === null || q === null) return (p === null) - (q === null);
      const by = typeof p === "string" ? p.localeCompare(q) : p - q;
      return (down ? -by : by) || a - b;
    });
    document.querySelectorAll("#list th").forEach((th) => {
      if (th.dataset.key === key) th.setAttribute("aria-sort", down ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    });
    drawList();
  }

  document.querySelectorAll("#list th").forEach((th) =>
    th.querySelector("button").addEventListener("click", () => {
      const key = th.dataset.key;
      sortBy(key, sorted.column === key ? !sorted.down : key !== "id");
    }));
  document.querySelector("#list tbody").addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (!row) return;
    choose(Number(row.dataset.i), true);
    map.scrollIntoView({ block: "nearest" });
  });
  $("more").addEventListener("click", () => { shownRows += 100; drawList(); });

  // ---- layers ----
  document.querySelectorAll("[data-layer]").forEach((input) => {
    const layer = $(input.dataset.layer);
    const apply = () => {
      if (input.type === "checkbox") layer.toggleAttribute("hidden", !input.checked);
      else layer.setAttribute("opacity", Number(input.value) / 100);
    };
    input.addEventListener("input", apply);
    apply();
  });
  const swipe = $("swipe");
  const curtain = () => {
    $("curtain").setAttribute("x", (width * Number(swipe.value)) / 100);
    furnish();
  };
  if (swipe) {
    swipe.addEventListener("input", curtain);
  }

  // ---- pointer ----
  const down = new Map();
  let start = null, moved = false;
  map.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    down.set(event.pointerId, event);
    if (down.size === 1) [start, moved] = [event, false];
  });
  map.addEventListener("pointermove", (event) => {
    sayPlace(onMap(event));
    const before = down.get(event.pointerId);
    if (!before) return;
    if (!moved && Math.hypot(event.clientX - start.clientX, event.clientY - start.clientY) < 5) return;
    moved = true;
    map.setPointerCapture(event.pointerId);
    map.classList.add("dragged");
    const m = metresPerPixel();
    if (down.size === 1) {
      move((before.clientX - event.clientX) * m, (before.clientY - event.clientY) * m);
    } else if (down.size === 2) {
      const other = [...down.values()].find((e) => e.pointerId !== event.pointerId);
      const apart = (e) => Math.max(Math.hypot(e.clientX - other.clientX, e.clientY - other.clientY), 1);
      move(((before.clientX - event.clientX) * m) / 2, ((before.clientY - event.clientY) * m) / 2);
      zoom(apart(event) / apart(before), onMap({
        clientX: (event.clientX + other.clientX) / 2, clientY: (event.clientY + other.clientY) / 2 }));
    }
    down.set(event.pointerId, event);
  });
  for (const kind of ["pointerup", "pointercancel"]) {
    map.addEventListener(kind, (event) => {
      const began = down.delete(event.pointerId);
      if (down.size === 0) map.classList.remove("dragged");
      if (!began || moved || kind === "pointercancel") return;
      sayPlace(onMap(event));
      const hit = event.target.closest("#landslides path");
      const i = hit ? paths.indexOf(hit) : -1;
      if (i >= 0 || chosen >= 0) choose(i);
    });
  }
  map.addEventListener("wheel", (event) => {
    event.preventDefault();
    const turned = event.deltaY * (event.deltaMode === 1 ? 16 : 1);
    zoom(Math.exp(-Math.max(-200, Math.min(200, turned)) * 0.003), onMap(event));
  }, { passive: false });
  map.addEventListener("dblclick", (event) => { event.preventDefault(); zoom(event.shiftKey ? 0.5 : 2, onMap(event)); });
  $("zoom-in").addEventListener("click", () => zoom(1.6));
  $("zoom-out").addEventListener("click", () => zoom(1 / 1.6));
  $("whole").addEventListener("click", showWhole);

  // ---- keys ----
  const keys = {
    ArrowLeft: () => move(-view.w / 8, 0), ArrowRight: () => move(view.w / 8, 0),
    ArrowUp: () => move(0, -view.h / 8), ArrowDown: () => move(0, view.h / 8),
    "+": () => zoom(1.6), "=": () => zoom(1.6), "-": () => zoom(1 / 1.6), "−": () => zoom(1 / 1.6), 0: showWhole,
    Enter: () => choose(nearest(centre())), n: () => step(1), p: () => step(-1),
  };
  map.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const act = keys[event.key] || keys[event.key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act();
    if (event.key.startsWith("Arrow") || "+=-−0".includes(event.key)) sayPlace(centre());
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || chosen < 0) return;
    const inside = details.contains(document.activeElement);
    choose(-1);
    if (inside) map.focus({ preventScroll: true });
  });

  // ---- begin ----
  let last = "";
  new ResizeObserver(() => {
    const { width: bw, height: bh } = box(), now = `${bw} ${bh}`;
    if (matchMedia("print").matches || now === last) return;
    if (last) { const [x, y] = centre(); setView(x - view.w / 2, y - (view.w * bh) / bw / 2, view.w); } else showWhole();
    last = now;
  }).observe(map);
  showWhole();
  if (data.rows.length) sortBy(sorted.column, sorted.down);
})();
