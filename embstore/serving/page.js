// The page of a server. What it shows comes from the server's endpoints, by their paths relative to the page's own,
// and is put in as text, never as markup.
"use strict";

const POLL_MS = 2000;
const POINTS = 60; // of a sparkline
const POLLS_PER_LOOK = 3; // at the aliases
const FIRST_VERSIONS = 25;
const NEIGHBORS = 10;
const TOKEN = "embstore-token";
const UNREACHABLE = "The server does not answer. This page goes on asking.";
const STATUS = [
  "Known: a value the version was trained on.",
  "Missing: no value; missing ones have a vector of their own.",
  "Pruned: a value too rare to keep; all of them share a vector.",
  "Unseen: not a value the version was trained on; its vector is that of the rows it falls on.",
];

const $ = (id) => document.getElementById(id);
const state = { name: "", rights: {}, alias: "", aliases: {}, versions: [], features: [], answering: "", all: false };
const traffic = { p50: [], p99: [], rate: [], before: null };
let asked = 0; // lookups, so that a late answer is not shown over a later one's
let polls = 0;
let troubled = false; // what was asked last, unasked by anyone, failed

class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

// Asking

async function ask(path, body) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token === null ? {} : { Authorization: `Bearer ${token}` };
  let response;
  try {
    response = await fetch(path, { headers, ...(body === undefined ? {} : { method: "POST", body }) });
  } catch {
    throw new Refused(UNREACHABLE, 0);
  }
  if (!response.ok) {
    const told = await response.json().catch(() => ({}));
    throw new Refused(told.error ?? `The server answered ${response.status}.`, response.status);
  }
  return response;
}

const get = async (path) => (await ask(path)).json();
const post = async (path, value) => (await ask(path, JSON.stringify(value))).json();

// Outputs come as raw bytes: JSON would lose digits of 64-bit integers, and has no NaN.
async function infer(inputs, outputs) {
  const names = outputs.map((name) => ({ name }));
  const rest = JSON.stringify({ outputs: names, parameters: { k: NEIGHBORS, binary_data_output: true } });
  const response = await ask(
    `v2/models/${encodeURIComponent(state.name)}/infer`,
    `{"inputs":[${inputs.join(",")}],${rest.slice(1)}`,
  );
  const bytes = await response.arrayBuffer();
  let at = Number(response.headers.get("inference-header-content-length"));
  const head = JSON.parse(new TextDecoder().decode(bytes.slice(0, at)));
  const found = { version: head.model_version };
  for (const output of head.outputs) {
    const size = output.parameters.binary_data_size;
    found[output.name] = READ[output.datatype](bytes.slice(at, at + size));
    at += size;
  }
  return found;
}

const READ = {
  FP32: (bytes) => new Float32Array(bytes),
  UINT8: (bytes) => new Uint8Array(bytes),
  INT64: (bytes) => Array.from(new BigInt64Array(bytes), String),
  BYTES: (bytes) => {
    const view = new DataView(bytes), values = [];
    for (let at = 0; at < bytes.byteLength; ) {
      const end = at + 4 + view.getUint32(at, true);
      values.push(textOf(bytes.slice(at + 4, end)));
      at = end;
    }
    return values;
  },
};

// A value's text; null where it isn't UTF-8.
function textOf(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return null;
  }
}

// A feature's tensors, as JSON: digits are put in as they are, as a number would lose some.
function tensors(feature, { values, missing }) {
  const given = missing ? [] : values.map((value) => literal(feature, value));
  const data = missing && !feature.list ? ["null"] : given;
  const tensor = (name, datatype, items) =>
    `{"name":${JSON.stringify(name)},"datatype":"${datatype}","shape":[${items.length}],"data":[${items.join(",")}]}`;
  const own = tensor(feature.name, feature.datatype, data);
  return feature.list ? [own, tensor(`${feature.name}.lengths`, "INT64", [missing ? -1 : data.length])] : [own];
}

function literal(feature, value) {
  if (feature.datatype !== "INT64") return JSON.stringify(value);
  const digits = value.trim();
  if (!/^-?\d{1,20}$/.test(digits)) {
    throw new Refused(`${feature.name} has whole numbers: digits, and a minus before them, are expected.`, 400);
  }
  return String(BigInt(digits));
}

// Building

function make(tag, { text, ...properties } = {}, ...children) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  Object.assign(node, properties);
  node.append(...children);
  return node;
}

function draw(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function say(id, text) {
  const node = $(id);
  if (node.textContent !== (text ?? "")) node.textContent = text ?? "";
  node.hidden = !text;
}

function cell(label, text, properties = {}) {
  const node = make("td", { text, ...properties });
  node.dataset.label = label;
  return node;
}

const whole = (number) => number.toLocaleString("en");

function sized(bytes) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  const unit = bytes < 1000 ? 0 : Math.min(Math.floor(Math.log10(bytes) / 3), units.length - 1);
  return `${unit === 0 ? bytes : (bytes / 1000 ** unit).toPrecision(3)} ${units[unit]}`;
}

function timed(seconds) {
  return seconds < 1 ? `${(1000 * seconds).toPrecision(3)} ms` : `${seconds.toPrecision(3)} s`;
}

// The fewest digits that give the same 32-bit number again.
function shortest(number) {
  for (let digits = 1; digits < 9; digits++) {
    const near = Number(number.toPrecision(digits));
    if (Math.fround(near) === number) return String(near);
  }
  return String(Number(number.toPrecision(9)));
}

// The time in an id, if that is enough to tell it from the others.
function short(id) {
  const time = id.split("-")[0];
  return state.versions.some((other) => other.id !== id && other.id.startsWith(time)) ? id : time;
}

// What the server is

async function load() {
  try {
    state.rights = await get("api/access");
  } catch (error) {
    if (error.status === 401 && sessionStorage.getItem(TOKEN) !== null) {
      sessionStorage.removeItem(TOKEN);
      await load();
      say("notice", "The server does not know this token.");
      return;
    }
    say("answering", null);
    await refused(error);
    return;
  }
  troubled = false;
  say("notice", null);
  showRights();
  $("main").hidden = !state.rights.reads;
  if (!state.rights.reads) {
    say("answering", "This server answers those who have a token of it.");
    return;
  }
  await refresh();
  await poll();
}

async function refresh() {
  const [versions, aliases, features] = await Promise.allSettled(
    ["api/versions", "api/aliases", "api/features"].map(get),
  );
  const failed = [versions, aliases, features].find((one) => one.status === "rejected");
  if (failed !== undefined && (failed.reason.status === 401 || failed.reason.status === 0)) {
    return refused(failed.reason);
  }
  if (versions.status === "fulfilled") {
    state.name = versions.value.name;
    state.versions = versions.value.versions.reverse();
  }
  if (aliases.status === "fulfilled") Object.assign(state, { alias: aliases.value.alias, aliases: aliases.value.aliases });
  if (features.status === "fulfilled") {
    state.name = features.value.name;
    state.answering = features.value.version;
    showFeatures(features.value);
  }
  say("features-error", features.reason?.message);
  say("versions-error", (versions.reason ?? aliases.reason)?.message);
  showAnswering();
  showVersions();
}

function showRights() {
  const { reads, administers, guarded, administered } = state.rights;
  const has = sessionStorage.getItem(TOKEN) !== null;
  $("access").hidden = !guarded && !administered;
  $("token-form").hidden = has;
  $("forget").hidden = !has;
  const may = administers ? "You may promote and roll back." : has ? "You may look up." : null;
  say("rights", may ?? (reads ? "A token lets you promote and roll back." : "A token lets you look up."));
}

function showAnswering() {
  $("name").textContent = state.name;
  document.title = `${state.name} · embstore`;
  const meant = state.aliases[state.alias];
  if (!state.answering) return say("answering", "No version answers yet.");
  const node = $("answering");
  node.hidden = false;
  node.replaceChildren(`${state.alias} is `, make("span", { className: "id", id: "version", text: state.answering }));
  if (meant !== undefined && meant !== state.answering) {
    node.append(`; it means ${meant} now, which this process has not loaded`);
  }
}

function showFeatures({ features, dense, scores }) {
  state.features = features;
  const rows = features.map(({ name, datatype, width, list, values, searched }) => {
    const type = `${list ? "list of " : ""}${datatype === "INT64" ? "whole number" : "text"}${list ? "s" : ""} (${datatype})`;
    return make(
      "tr", {},
      make("th", { scope: "row", text: name }), make("td", { text: type }),
      make("td", { className: "number", text: String(width) }),
      make("td", { text: values ? "listed" : "not listed" }), make("td", { text: searched ? "yes" : "no" }),
    );
  });
  $("features").tBodies[0].replaceChildren(...rows);
  const beside = dense.length === 0 ? "" : `Dense columns, for scores: ${dense.join(", ")}. `;
  say("dense", `${beside}${scores ? "The version's network scores rows." : "Vectors only: nothing scores rows."}`);
  const chosen = $("feature").value;
  $("feature").replaceChildren(...features.map(({ name }) => make("option", { value: name, text: name })));
  const first = features.find((one) => one.name === chosen) ?? features.find((one) => one.searched) ?? features[0];
  if (first !== undefined) $("feature").value = first.name;
  fit();
}

function showVersions() {
  const { administers } = state.rights;
  const shown = state.all ? state.versions : state.versions.slice(0, FIRST_VERSIONS);
  $("versions").tBodies[0].replaceChildren(...shown.map(versionRow));
  const more = state.versions.length > shown.length;
  say("all-versions", more ? `Show all ${whole(state.versions.length)} versions` : null);
  say("rollback", administers && state.alias in state.aliases ? `Roll ${state.alias} back…` : null);
}

function versionRow(version) {
  const names = cell("Names", undefined, { className: "wraps" });
  for (const alias of version.aliases) {
    names.append(make("span", { className: `chip alias${alias === state.alias ? " now" : ""}`, text: alias }), " ");
  }
  for (const tag of version.tags) names.append(make("span", { className: "chip", title: "tag", text: tag }), " ");
  const parent = cell("Parent", version.parent === null ? "" : short(version.parent), { className: "id" });
  if (version.parent !== null) parent.title = version.parent;
  const { delta, damaged } = version;
  const base = delta === null ? null : delta.base === version.parent ? "its parent" : short(delta.base);
  const rows = delta === null ? null : `delta: ${whole(delta.rows)} rows over ${base}`;
  const is = damaged ? "damaged" : version.id === state.answering ? "answers" : version.loaded ? "loaded" : "stored";
  const about = cell("State", damaged ? `damaged: ${damaged}` : is, { className: damaged ? "wraps bad" : "" });
  const actions = make("td");
  if (state.rights.administers && !damaged && state.aliases[state.alias] !== version.id) {
    const button = make("button", { type: "button", text: `Promote…`, ariaLabel: `Promote ${version.id}` });
    button.addEventListener("click", () => promote(version));
    actions.append(button);
  }
  return make(
    "tr", {},
    make("th", { scope: "row", className: "id", text: version.id }), names,
    cell("Published, UTC", version.created.replace("T", " ").replace(/:\d\d(\.\d+)?Z$/, "")), parent,
    cell("Table", version.table === null ? "" : (rows ?? `whole: ${version.table}`), { className: "wraps" }),
    cell("Size", version.bytes === null ? "" : sized(version.bytes), { className: "number" }), about, actions,
  );
}

async function refused(error) {
  if (error.status === 401) return load();
  troubled = true;
  return say("notice", error.message);
}

// Administering

function confirmed(title, text, yes) {
  const dialog = $("confirm");
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

async function move(path, value) {
  say("done", null);
  try {
    const info = await post(path, value);
    say("versions-error", null);
    say("done", `${value.alias} means ${info.id}.`);
    await refresh();
  } catch (error) {
    say("versions-error", error.message);
  }
}

async function promote({ id }) {
  const { alias } = state;
  const now = state.aliases[alias] === undefined ? "nothing" : state.aliases[alias];
  const text = `Requests that name no version are answered from ${id} from then on. ${alias} means ${now} now.`;
  if (await confirmed(`Promote ${id} to ${alias}?`, text, "Promote")) await move("api/promote", { ref: id, alias });
}

async function rollback() {
  const { alias } = state;
  const text = `It means what it meant before ${state.aliases[alias]}. Rolling back again undoes it.`;
  if (await confirmed(`Roll ${alias} back?`, text, "Roll back")) await move("api/rollback", { alias });
}

// Looking up: what is looked up stands after the # of the address, so that the browser's Back works.

function chosen() {
  return state.features.find(({ name }) => name === $("feature").value);
}

function fit() {
  const feature = chosen();
  if (feature === undefined) return;
  const missing = $("missing").checked;
  $("value").hidden = feature.list;
  $("values").hidden = !feature.list;
  $("value-label").htmlFor = feature.list ? "values" : "value";
  $("value-label").textContent = feature.list ? "Values, one a line" : feature.datatype === "INT64" ? "Value, digits" : "Value";
  $("value").inputMode = feature.datatype === "INT64" ? "numeric" : "text";
  $("value").disabled = $("values").disabled = missing;
}

function address(feature, values, missing) {
  const of = new URLSearchParams([["feature", feature.name], ...values.map((value) => ["value", value])]);
  if (missing) of.set("missing", "yes");
  return `#${of}`;
}

function go(feature, values, missing = false) {
  const to = address(feature, missing ? [] : values, missing);
  if (location.hash === to) lookUp();
  else location.hash = to;
}

function submitted() {
  const feature = chosen();
  if (feature === undefined) return;
  const lines = $("values").value.split("\n");
  if (lines.at(-1) === "") lines.pop();
  go(feature, feature.list ? lines : [$("value").value], $("missing").checked);
}

async function lookUp() {
  const of = new URLSearchParams(location.hash.slice(1));
  const name = of.get("feature"), values = of.getAll("value"), missing = of.has("missing");
  if (name === null || !state.rights.reads) return;
  const feature = state.features.find((one) => one.name === name);
  if (feature === undefined) return say("lookup-error", `No feature ${name} in this version.`);
  if (!feature.list && !missing && values.length !== 1) return say("lookup-error", `${name} takes one value.`);
  $("feature").value = name;
  $("missing").checked = missing;
  $("value").value = feature.list ? "" : (values[0] ?? "");
  $("values").value = values.join("\n");
  fit();
  const number = ++asked;
  const outputs = ["embedding", "status", ...(feature.searched ? ["neighbors", "scores"] : [])];
  try {
    const inputs = tensors(feature, { values, missing });
    const found = await infer(inputs, outputs.map((output) => `${name}.${output}`));
    if (number === asked) showResult(feature, values, missing, found);
  } catch (error) {
    if (number !== asked) return;
    if (error.status === 401) return load();
    $("result").hidden = true;
    say("lookup-empty", null);
    say("lookup-error", error.message);
  }
}

function showResult(feature, values, missing, found) {
  const of = (output) => found[`${feature.name}.${output}`];
  say("lookup-error", null);
  say("lookup-empty", null);
  $("result").hidden = false;
  const shown = missing ? "missing" : values.length === 0 ? "an empty list" : values.map((v) => v || "(empty text)").join(", ");
  $("result-title").textContent = `${feature.name}: ${shown}`;
  showStatus(feature, values, missing, of("status"));
  showVector(of("embedding"), found.version);
  showNeighbors(feature, of("neighbors"), of("scores"));
}

function showStatus(feature, values, missing, statuses) {
  const means = (status) => STATUS[status] ?? `Status ${status}.`;
  if (statuses.length === 1) {
    const anyway = statuses[0] === 0 && !feature.values ? " (The version lists no values of this feature.)" : "";
    $("status").textContent = means(statuses[0]) + anyway;
  } else if (statuses.length === 0) {
    $("status").textContent = "No values: the vector of an empty list.";
  } else {
    const words = Array.from(statuses, (status, n) => `${values[n]}: ${means(status).split(":")[0].toLowerCase()}`);
    $("status").textContent = words.join("; ");
  }
}

function showVector(vector, version) {
  const numbers = Array.from(vector), finite = numbers.filter(Number.isFinite);
  const largest = Math.max(...finite.map(Math.abs), 0) || 1;
  const bars = numbers.map((number, n) => {
    const height = Number.isFinite(number) ? (98 * Math.abs(number)) / largest : 0;
    const bar = draw("rect", {
      x: 10 * n + 1, y: number > 0 ? 100 - height : 100, width: 8, height, class: number > 0 ? "above" : "below",
    });
    bar.append(draw("title", {}, `${n}: ${shortest(number)}`));
    return bar;
  });
  const width = 10 * Math.max(numbers.length, 1);
  const plot = draw(
    "svg", { viewBox: `0 0 ${width} 200`, preserveAspectRatio: "none", role: "img", "aria-label": "The vector's numbers, as bars" },
    ...bars, draw("line", { x1: 0, x2: width, y1: 100, y2: 100, class: "axis" }),
  );
  $("bars").replaceChildren(plot);
  const length = Math.sqrt(finite.reduce((sum, number) => sum + number * number, 0));
  const odd = numbers.length - finite.length;
  const range = finite.length === 0 ? "" : ` from ${Math.min(...finite).toPrecision(3)} to ${Math.max(...finite).toPrecision(3)},`;
  const not = odd === 0 ? "" : ` ${odd} of them not finite,`;
  const about = `${whole(numbers.length)} numbers${range}${not} of length ${length.toPrecision(3)}; version `;
  $("summary").replaceChildren(about, make("span", { className: "id", text: version }));
  $("numbers").textContent = `[${numbers.map(shortest).join(", ")}]`;
}

function showNeighbors(feature, values, scores) {
  const rows = [];
  for (const [n, score] of Array.from(scores ?? []).entries()) {
    if (score === -Infinity) break; // there are fewer
    const value = make("td");
    if (values[n] === null) {
      value.textContent = "(not text)";
    } else {
      const button = make("button", { type: "button", text: values[n] || "(empty text)" });
      button.addEventListener("click", () => {
        go(feature, [values[n]]);
        $("result-title").focus();
      });
      value.append(button);
    }
    rows.push(make("tr", {}, value, make("td", { className: "number", text: score.toFixed(4) })));
  }
  $("neighbors").tBodies[0].replaceChildren(...rows);
  $("neighbors").hidden = $("nearest-note").hidden = rows.length === 0;
  const why = feature.searched ? "No other values." : "This feature is not searched: the server is started with the features that are.";
  say("nearest-empty", rows.length === 0 ? why : null);
}

// Traffic

async function poll() {
  try {
    showTraffic(await get("api/latency"));
    if (++polls % POLLS_PER_LOOK === 0) {
      const { aliases } = await get("api/aliases");
      const moved = JSON.stringify(aliases) !== JSON.stringify(state.aliases);
      if (moved || aliases[state.alias] !== state.answering) await refresh();
    }
    if (troubled) await load();
  } catch (error) {
    await refused(error);
  }
}

function showTraffic({ requests, seconds }) {
  const now = performance.now(), { before } = traffic;
  // Fewer than before: another process of the server, or one started anew.
  const rate = before === null || requests < before.requests ? null : (1000 * (requests - before.requests)) / (now - before.now);
  traffic.before = { requests, now };
  for (const [id, value, text] of [
    ["p50", seconds.p50 ?? null, timed], ["p99", seconds.p99 ?? null, timed],
    ["rate", rate, (number) => number.toFixed(number < 100 ? 1 : 0)],
  ]) {
    traffic[id].push(value);
    traffic[id].splice(0, traffic[id].length - POINTS);
    $(id).textContent = value === null ? "–" : text(value);
    $(id).nextElementSibling.replaceChildren(sparkline(traffic[id]));
  }
  say("traffic-note", requests === 0
    ? "No request has been answered yet."
    : `${whole(requests)} answered; times are of the last ${whole(Math.min(requests, 4096))}, in the process that answers this page.`);
}

function sparkline(values) {
  const largest = Math.max(...values.filter((value) => value !== null), 0) || 1;
  const points = values.flatMap((value, n) =>
    value === null ? [] : [`${POINTS - values.length + n},${(30 - (28 * value) / largest).toFixed(2)}`],
  );
  return draw(
    "svg", { viewBox: `0 0 ${POINTS - 1} 31`, preserveAspectRatio: "none", "aria-hidden": "true" },
    draw("polyline", { points: points.join(" "), class: "spark" }),
  );
}

function on(id, event, does) {
  $(id).addEventListener(event, (happened) => {
    if (event === "submit") happened.preventDefault();
    does();
  });
}

async function useToken() {
  const token = $("token").value.trim();
  $("token").value = "";
  if (!/^[\x20-\x7e]+$/.test(token)) return say("notice", "The server does not know this token.");
  sessionStorage.setItem(TOKEN, token);
  await load();
  return lookUp();
}

on("token-form", "submit", useToken);
on("forget", "click", () => {
  sessionStorage.removeItem(TOKEN);
  $("result").hidden = true;
  load();
});
on("lookup", "submit", submitted);
on("feature", "change", fit);
on("missing", "change", fit);
on("rollback", "click", rollback);
on("all-versions", "click", () => {
  state.all = true;
  showVersions();
});
on("confirm-no", "click", () => $("confirm").close("no"));
on("confirm-yes", "click", () => $("confirm").close("yes"));
window.addEventListener("hashchange", lookUp);

load().then(lookUp);
setInterval(() => {
  if (!document.hidden && (state.rights.reads || troubled)) poll();
}, POLL_MS);
