// The page: three tabs over one device. Whatever fails is shown, with a button that opens the device again.
import init, { Device, Writer, families, variants } from "./flashwave_web.js";
import { chart } from "./chart.js";
import { embedded, fromDrop, fromInput } from "./model.js";
import { requireSubgroups } from "./subgroups.js";

const $ = (id) => document.getElementById(id);
const show = (id, visible) => { $(id).hidden = !visible; };

let device = null;
let writer = null;
// Names and contents of the model's files, kept to load them again.
let model = null;
let stopped = false;
// Whether devices have subgroups; the address's ?portable forgoes them.
let subgroups;

async function open() {
  if (!navigator.gpu) throw Error("This browser has no WebGPU. Chrome and Edge from 113, Safari from 26 and Firefox from 141 have it, not on every system.");
  await init();
  if ($("family").length === 1) $("family").append(...families().map((name) => new Option(name)));
  subgroups ??= !location.search.includes("portable") && await requireSubgroups();
  device = await Device.open(subgroups);
  $("adapter").textContent = device.adapter;
  $("tier").textContent = device.tier;
  model ??= await embedded();
  await load(model);
}

async function load(files) {
  $("model").textContent = `${files.title}, loading`;
  // What is there goes first: both may not fit.
  writer?.free();
  writer = null;
  writer = await Writer.load(device, files.names, files.contents);
  model = files;
  $("model").textContent = files.title;
  $("tokens").max = writer.longest;
}

// Runs one task at a time; its error is shown.
async function run(task) {
  const buttons = ["write", "verify-quick", "verify-all", "bench-start"];
  stopped = false;
  show("trouble", false);
  for (const id of buttons) $(id).disabled = true;
  try {
    await task();
  } catch (error) {
    $("trouble-text").textContent = error?.message ?? String(error);
    show("trouble", true);
  }
  for (const id of ["stop-writing", "stop-verify"]) show(id, false);
  for (const id of buttons) $(id).disabled = !device;
  $("write").disabled = !writer;
}

async function write() {
  const text = $("text");
  text.textContent = "";
  show("stop-writing", true);
  const started = performance.now();
  let first = 0;
  const tell = (piece, generated) => {
    text.append(piece);
    const now = performance.now();
    if (generated === 1) first ||= now;
    if (generated > 1) {
      const rate = (generated - 1) / (now - first) * 1e3;
      $("rate").textContent =
        `${generated} tokens, ${rate.toFixed(1)} tokens/s; the first after ${(first - started).toFixed(0)} ms`;
    }
    return !stopped;
  };
  const number = (id) => Number($(id).value);
  await writer.write($("prompt").value, number("tokens"), number("temperature"), number("seed"), tell);
}

async function verify(quick) {
  const rows = $("verify-rows");
  rows.replaceChildren();
  show("stop-verify", true);
  const sum = [0, 0, 0];
  const wanted = $("family").value;
  for (const family of wanted ? [wanted] : families()) {
    if (stopped) break;
    const row = rows.insertRow();
    const cells = [family, 0, 0, 0].map((value) => {
      const cell = row.insertCell();
      cell.textContent = value;
      return cell;
    });
    const counts = [0, 0, 0];
    await device.verify(family, quick, (group, passed, failures, skipped) => {
      const missing = skipped.reduce((n, line) => n + parseInt(line), 0);
      [passed, failures.length, missing].forEach((n, i) => {
        counts[i] += n;
        sum[i] += n;
        cells[i + 1].firstChild.data = counts[i];
      });
      const note = (line, kind) => {
        const small = document.createElement("small");
        small.textContent = `${group}: ${line}`;
        small.className = kind;
        cells[0].append(small);
      };
      for (const failure of failures) note(failure, "failed");
      for (const line of skipped) note(line, "quiet");
      row.classList.toggle("failed", counts[1] > 0);
      $("verify-sum").textContent = `${sum[0]} passed, ${sum[1]} failed, ${sum[2]} skipped`;
      return !stopped;
    });
  }
  $("verify-sum").textContent += stopped ? " (stopped)" : " (done)";
}

async function bench() {
  const lines = variants().map((name) => ({ name, points: [] }));
  // Milliseconds that one run may take; longer texts of a variant that is slower are left out.
  const most = 400;
  for (let length = 256; length <= 16384; length *= 2) {
    for (const [index, line] of lines.entries()) {
      if (line.points.some(([, time]) => time > most / 4)) continue;
      $("bench-state").textContent = `${line.name}, ${length} tokens`;
      line.points.push([length, await device.attention(index, length)]);
      chart($("chart"), $("legend"), lines);
    }
  }
  $("bench-state").textContent = "done";
}

function select(tab) {
  for (const other of document.querySelectorAll("[role=tab]")) {
    other.setAttribute("aria-selected", other === tab);
    show(other.getAttribute("aria-controls"), other === tab);
  }
}

for (const tab of document.querySelectorAll("[role=tab]")) tab.onclick = () => select(tab);
$("generate-form").onsubmit = (event) => { event.preventDefault(); run(write); };
$("verify-quick").onclick = () => run(() => verify(true));
$("verify-all").onclick = () => run(() => verify(false));
$("bench-start").onclick = () => run(bench);
for (const id of ["stop-writing", "stop-verify"]) $(id).onclick = () => { stopped = true; };
$("again").onclick = () => run(async () => {
  writer = null;
  device = null;
  await open();
});

for (const id of ["folder", "file"]) {
  $(id).onchange = () => run(async () => load(await fromInput($(id).files)));
}
const drop = $("drop");
drop.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
drop.ondragleave = () => drop.classList.remove("over");
drop.ondrop = (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  const items = event.dataTransfer;
  run(async () => load(await fromDrop(items)));
};

// For the test, which loses the device.
window.flashwave = { device: () => device };
run(open);
