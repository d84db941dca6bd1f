"use strict";
// One page, one JSON document every two seconds. Names come from tenants and are only ever set as text.

const EVERY_MS = 2000;
const SHOWN = 12;            // rows of a long table, unless something is searched for
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
const open = new Set();      // what the reader has unfolded, kept over refreshes
const filters = {};          // what the reader has typed into each search field
let token = sessionStorage.getItem("token") || "";

// ---- small parts -------------------------------------------------------------------------------------------------------------------

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) element[name] = value;
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const count = (value) => Math.round(value).toLocaleString("en");
const percent = (share) => Number.isFinite(share) ? `${(100 * share).toFixed(share > 0.999 || share === 0 ? 0 : 1)} %` : "–";

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (value >= 1024 && place < units.length - 1) { value /= 1024; place += 1; }
  return `${value.toFixed(place && value < 100 ? 1 : 0)} ${units[place]}`;
}

function seconds(value) {
  if (!Number.isFinite(value) || value <= 0) return "–";
  if (value < 1e-3) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 1) return `${(value * 1e3).toFixed(value < 0.01 ? 1 : 0)} ms`;
  return value < 120 ? `${value.toFixed(2)} s` : duration(value);
}

function duration(value) {
  const [days, hours, minutes] = [Math.floor(value / 86400), Math.floor(value / 3600) % 24, Math.floor(value / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min` : `${Math.floor(value)} s`;
}

const ago = (at, now) => now - at < 1 ? "now" : `${duration(now - at)} ago`;
const reason = (name) => name.replaceAll("_", " ");
const sum = (values) => values.reduce((total, value) => total + value, 0);

function section(title, note, half, ...content) {
  return make("section", { className: half ? "half" : "" }, make("h2", { textContent: title }), note ? make("p", { textContent: note }) : null, ...content);
}

function searchable(title, note, field, content) {
  const words = make("div", {}, make("h2", { textContent: title }), make("p", { className: "soft", textContent: note }));
  return make("section", {}, make("div", { className: "head" }, words, field), content);
}

function table(columns, rows, empty) {
  if (!rows.length) return make("p", { className: "soft", textContent: empty });
  const head = make("tr", {}, ...columns.map(([name, , kind]) => make("th", { textContent: name, className: kind || "" })));
  const body = rows.map((row) => make("tr", {}, ...columns.map(([, read, kind]) => {
    const cell = make("td", { className: kind || "" });
    cell.append(read(row) ?? "");
    return cell;
  })));
  return make("div", { className: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}

function bar(name, parts, figure, note) {
  const track = make("div", { className: "track" });
  for (const [share, kind] of parts) {
    const piece = make("i", { className: kind });
    piece.style.width = `${100 * Math.min(1, Math.max(0, share || 0))}%`;
    track.append(piece);
  }
  return make("div", { className: "bar" }, make("span", {}, name), track, make("span", { className: "num", textContent: figure }), note ? make("small", {}, note) : null);
}

function tile(figure, text) {
  return make("div", { className: "tile" }, make("b", { textContent: figure }), make("span", { textContent: text }));
}

const code = (text) => make("code", { textContent: text });

function found(name, rows, text) {
  const wanted = (filters[name] || "").trim().toLowerCase();
  return wanted ? rows.filter((row) => text(row).toLowerCase().includes(wanted)) : rows.slice(0, SHOWN);
}

function search(name, hint) {
  const field = make("input", { type: "search", id: `find-${name}`, className: "find", placeholder: hint, value: filters[name] || "" });
  field.setAttribute("aria-label", hint);
  field.addEventListener("input", () => { filters[name] = field.value; show(last); });
  return field;
}

// ---- panels ------------------------------------------------------------------------------------------------------------------------

function tiles(all) {
  const cells = [];
  const { store, worker, server } = all;
  if (store) {
    const hits = store.outcomes.hit || 0;
    const asked = sum(Object.entries(store.outcomes).filter(([name]) => name !== "pending").map(([, n]) => n));
    cells.push(tile(percent(hits / asked), `of ${count(asked)} chunks asked for were stored`));
    cells.push(tile(bytes(sum(store.tiers.map((tier) => tier.used_bytes))), `stored in ${store.tiers.map((tier) => tier.name).join(", ")}`));
  }
  if (worker) {
    const { loaded, recomputed } = worker.tokens;
    cells.push(tile(seconds(worker.ttft_p50_s), "to the first token, or less, for half of the requests"));
    cells.push(tile(seconds(worker.ttft_p99_s), "or less for 99 of 100"));
    cells.push(tile(percent(loaded / (loaded + recomputed)), "of prompt tokens loaded instead of computed"));
    cells.push(tile(count(worker.running), `requests running, ${count(worker.requests)} answered`));
  }
  if (server) {
    cells.push(tile(count(server.running), `calls running, ${count(server.waiting)} waiting`));
    cells.push(tile(bytes(server.inflight_bytes), `in flight of ${bytes(server.inflight_limit_bytes)}`));
  }
  return make("section", { className: "tiles", id: "tiles" }, ...cells);
}

function tiers(store) {
  const rows = store.tiers.map((tier) => {
    const share = tier.capacity_bytes ? tier.used_bytes / tier.capacity_bytes : 0;
    const state = !tier.is_available ? make("span", { className: "bad-text", textContent: " down" })
      : tier.breakers_open ? make("span", { className: "bad-text", textContent: ` ${tier.breakers_open} of its servers rest` }) : "";
    const size = tier.capacity_bytes ? `${bytes(tier.used_bytes)} of ${bytes(tier.capacity_bytes)}` : bytes(tier.used_bytes);
    const notes = [`${count(tier.entries)} chunks`, `${count(tier.hits)} reads hit, ${count(tier.misses)} missed`];
    if (tier.errors) notes.push(`${count(tier.errors)} calls failed or refused`);
    if (tier.evicted) notes.push(`${count(tier.evicted)} evicted`);
    if (tier.queue_bytes) notes.push(`${bytes(tier.queue_bytes)} wait to be written`);
    const name = make("span", {}, make("b", { textContent: tier.name }), state);
    return bar(name, [[share, share > 0.95 ? "warm" : ""]], size, notes.join(" · "));
  });
  return section("Tiers", "Fastest first. A full tier evicts what is worth least; that is how it is meant to be.", true, ...rows);
}

function misses(store) {
  const reasons = Object.entries(store.outcomes).filter(([name, n]) => n && name !== "hit" && name !== "pending").sort((a, b) => b[1] - a[1]);
  const all = sum(reasons.map(([, n]) => n));
  const rows = reasons.map(([name, n]) => bar(make("b", { textContent: reason(name) }), [[n / all, "bad"]], count(n), store.meanings[name] || ""));
  if (!rows.length) rows.push(make("p", { className: "soft", textContent: "Nothing was missed since the start." }));
  return section("Misses by reason", "Chunks that were asked for and not there, and why.", true, ...rows);
}

function chart(history) {
  const steps = history.filter((step) => step.seconds > 0);
  const [width, height, left, top] = [Math.max(320, byId("panels").clientWidth - 90), 170, 46, 8];
  const below = height - 22;
  const most = Math.max(1, ...steps.map((step) => ((step["store.hits"] || 0) + (step["store.misses"] || 0)) / step.seconds));
  const start = steps.length ? steps[0].at_s - steps[0].seconds : 0;
  const span = steps.length ? Math.max(1, steps.at(-1).at_s - start) : 1;
  const x = (at) => left + (width - left) * (at - start) / span;
  const y = (share) => below - (below - top) * share;
  const picture = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "hit rate and requests over the last hour" });
  for (const share of [0, 0.5, 1]) {
    picture.append(draw("line", { class: "grid", x1: left, x2: width, y1: y(share), y2: y(share) }));
    const label = draw("text", { x: 0, y: y(share) + 4 });
    label.textContent = percent(share);
    picture.append(label);
  }
  const line = [];
  for (const step of steps) {
    const [hits, missed] = [step["store.hits"] || 0, step["store.misses"] || 0];
    const [from, to] = [x(step.at_s - step.seconds), x(step.at_s)];
    const high = (hits / step.seconds) / most, low = (missed / step.seconds) / most;
    const wide = Math.max(0.5, to - from - 0.6);
    picture.append(draw("rect", { class: "hits", x: from, width: wide, y: y(high), height: below - y(high) }));
    picture.append(draw("rect", { class: "misses", x: from, width: wide, y: y(high + low), height: y(high) - y(high + low) }));
    if (hits + missed) line.push(`${(from + to) / 2},${y(hits / (hits + missed))}`);
  }
  if (line.length) picture.append(draw("polyline", { class: "rate", points: line.join(" "), "vector-effect": "non-scaling-stroke" }));
  for (const [at, anchor, text] of [[left, "start", `${duration(span)} ago`], [width, "end", "now"]]) {
    const label = draw("text", { x: at, y: height - 4, "text-anchor": anchor });
    label.textContent = text;
    picture.append(label);
  }
  const legend = make("p", { className: "legend" },
    make("span", { textContent: "hit rate" }), make("span", { className: "k-hits", textContent: `hits a second (full height: ${most.toFixed(1)})` }), make("span", { className: "k-misses", textContent: "misses a second" }));
  return section("Hit rate over time", "", false, legend, picture);
}

function planner(worker) {
  const { loaded, recomputed, generated } = worker.tokens;
  const all = loaded + recomputed;
  const rows = [bar(make("b", { textContent: "prompt tokens" }), [[loaded / all, "good"], [recomputed / all, "warm"]], percent(loaded / all), `${count(loaded)} loaded, ${count(recomputed)} computed, ${count(generated)} generated`)];
  const passages = worker.passages;
  const n = sum(passages.map((row) => row.count));
  for (const row of passages) {
    const name = row.action === "load" ? `loaded from ${row.reason}` : `computed: ${reason(row.reason)}`;
    rows.push(bar(name, [[row.count / n, row.action === "load" ? "good" : "warm"]], count(row.count), row.meaning));
  }
  for (const row of worker.policies) rows.push(bar(make("span", {}, "policy ", code(row.policy)), [[row.count / worker.requests, ""]], count(row.count), `planner ${row.planner}`));
  const off = worker.prediction_p50 ? ` Half of the predictions were off by ${percent(worker.prediction_p50)} or less.` : "";
  const legend = make("p", { className: "legend" }, make("span", { className: "k-loaded", textContent: "loaded" }), make("span", { className: "k-computed", textContent: "computed" }));
  return section("Planner decisions", `What became of prompts: loading where it is sooner, computing where it is not.${off}`, true, legend, ...rows);
}

function slowest(worker, now) {
  const rows = found("requests", worker.slowest, (row) => `${row.request} ${row.tenant} ${row.why}`);
  const columns = [
    ["request", (row) => code(row.request), "tight"],
    ["tenant", (row) => row.tenant],
    ["when", (row) => ago(row.at_s, now), "tight"],
    ["first token", (row) => seconds(row.ttft_s), "num"],
    ["predicted", (row) => seconds(row.predicted_s), "num"],
    ["loaded", (row) => count(row.loaded), "num"],
    ["computed", (row) => count(row.recomputed), "num"],
    ["why", (row) => details(`request ${row.request}`, row.why, row.passages), "wide"],
  ];
  const note = "Of the last thousand. The rest of the story: larder explain REQUEST.";
  return searchable("Slowest requests", note, search("requests", "find a request or tenant"), table(columns, rows, "No request that fits."));
}

function details(name, headline, lines) {
  const part = make("details", { open: open.has(name) }, make("summary", { textContent: headline }), make("ul", {}, ...lines.map((line) => make("li", { textContent: line }))));
  part.addEventListener("toggle", () => part.open ? open.add(name) : open.delete(name));
  return part;
}

function recent(store, now) {
  const rows = found("misses", store.misses, (row) => `${row.request} ${row.tenant} ${row.chunk} ${row.reason}`);
  const columns = [
    ["when", (row) => ago(row.at_s, now), "tight"],
    ["tenant", (row) => row.tenant],
    ["request", (row) => row.request ? code(row.request) : "–"],
    ["chunk", (row) => code(row.chunk.slice(0, 16))],
    ["reason", (row) => make("b", { textContent: reason(row.reason) })],
    ["what it means", (row) => row.meaning, "wide"],
  ];
  const note = "Find a request by its id, or a passage by its chunk: the reason is beside it.";
  return searchable("Latest misses", note, search("misses", "find a request, chunk or tenant"), table(columns, rows, "No miss that fits."));
}

function tenants(store, worker) {
  const rows = store ? store.tenants : worker.tenants;
  const columns = store ? [
    ["tenant", (row) => row.tenant],
    ["hit rate", (row) => percent(row.hits / (row.hits + row.misses)), "num"],
    ["asked", (row) => count(row.hits + row.misses), "num"],
    ["got out", (row) => bytes(row.out_bytes), "num"],
    ["put in", (row) => bytes(row.in_bytes), "num"],
  ] : [
    ["tenant", (row) => row.tenant],
    ["requests", (row) => count(row.requests), "num"],
    ["loaded", (row) => count(row.loaded), "num"],
    ["computed", (row) => count(row.recomputed), "num"],
  ];
  return section("Tenants", "Tenants that call later than the first ones are counted together as other.", true, table(columns, rows, "Nobody called yet."));
}

function calls(server) {
  const columns = [
    ["call", (row) => row.call],
    ["lane", (row) => row.lane],
    ["count", (row) => count(row.count), "num"],
    ["failed", (row) => row.failed ? make("span", { className: "bad-text", textContent: count(row.failed) }) : "0", "num"],
    ["half within", (row) => seconds(row.p50_ms / 1000), "num"],
    ["99 % within", (row) => seconds(row.p99_ms / 1000), "num"],
  ];
  return section("Calls", "", true, table(columns, server.calls, "No call yet."));
}

// ---- the page ----------------------------------------------------------------------------------------------------------------------

let last = null;

function show(all) {
  if (!all) return;
  last = all;
  const { store, worker, server } = all;
  const parts = { store: "store", worker: "worker", up: "store and worker" };
  byId("what").textContent = `${parts[all.part] || all.part} ${all.version} at ${server ? server.address : ""}, up for ${duration(all.now_s - all.started_s)}`;
  const panels = [tiles(all)];
  if (store) panels.push(chart(all.history), tiers(store), misses(store));
  if (worker) panels.push(planner(worker));
  if (store || worker) panels.push(tenants(store, worker));
  if (worker) panels.push(slowest(worker, all.now_s));
  if (store) panels.push(recent(store, all.now_s));
  if (server) panels.push(calls(server));
  const focused = document.activeElement && document.activeElement.id;
  const caret = focused ? document.activeElement.selectionStart : null;
  byId("panels").replaceChildren(...panels);
  const again = focused && byId(focused);
  if (again) { again.focus(); if (caret !== null && again.setSelectionRange) again.setSelectionRange(caret, caret); }
}

function state(kind, text) {
  byId("state").className = kind;
  byId("state").textContent = text;
}

async function refresh() {
  try {
    const answer = await fetch("console.json", { headers: token ? { Authorization: `Bearer ${token}` } : {}, cache: "no-store" });
    byId("login").hidden = answer.status !== 401;
    if (answer.status === 401) return state("bad", token ? "this token is not an admin's" : "a token is needed");
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    const all = await answer.json();
    show(all);
    state(all.is_ready ? "good" : "bad", all.is_ready ? "serving" : "draining: takes no new calls");
  } catch (error) {
    state("bad", `no answer (${error.message}); what is shown is old`);
  } finally {
    setTimeout(refresh, document.hidden ? 5 * EVERY_MS : EVERY_MS);
  }
}

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value.trim();
  sessionStorage.setItem("token", token);
  byId("token").value = "";
});
refresh();
