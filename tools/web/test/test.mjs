// The page in a headless Chromium on its software adapter. Environment: PAGE (its address), CHROMIUM (the program),
// OUT (a folder). Options: --quick or --all (cases; --quick unless told), --record FILE (what Verify said, as
// `flashwave verify` prints it), --screenshots.
import { mkdirSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";

const { values: options } = parseArgs({
  options: {
    quick: { type: "boolean" },
    all: { type: "boolean" },
    record: { type: "string" },
    screenshots: { type: "boolean" },
  },
});
const { PAGE, CHROMIUM, OUT } = process.env;
mkdirSync(OUT, { recursive: true });

const failures = [];
const check = (holds, what) => {
  console.log(`${holds ? "ok" : "FAILED"}: ${what}`);
  if (!holds) failures.push(what);
};

const browser = await chromium.launch({
  executablePath: CHROMIUM,
  headless: true,
  // Others give no adapter on a machine without a GPU.
  args: ["--no-sandbox", "--enable-unsafe-webgpu"],
});
const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
const complaints = [];
page.on("console", (message) => {
  if (message.type() === "error") complaints.push(message.text());
});
page.on("pageerror", (error) => complaints.push(String(error)));

const text = (selector) => page.locator(selector).textContent();
const idle = (button) => page.waitForFunction(
  (id) => !document.getElementById(id).disabled || !document.getElementById("trouble").hidden,
  button,
  { timeout: 3600e3 },
);
const picture = async (name) => {
  if (!options.screenshots) return;
  for (const [size, width, height] of [["desktop", 1280, 900], ["phone", 390, 844]]) {
    await page.setViewportSize({ width, height });
    await page.screenshot({ path: `${OUT}/${name}-${size}.png`, fullPage: true });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
    check(!wide, `${name} fits a ${size}`);
  }
};
const seconds = async (task) => {
  const started = Date.now();
  await task();
  return ((Date.now() - started) / 1000).toFixed(1);
};

let taken = await seconds(async () => {
  await page.goto(PAGE);
  await idle("write");
});
check(await page.locator("#trouble").isHidden(), `the page opens a device and loads the model (${taken} s)`);
console.log(`adapter: ${await text("#adapter")}; tier: ${await text("#tier")}`);

// What the embedded model writes is a story of sentences.
await page.fill("#tokens", "60");
taken = await seconds(async () => {
  await page.click("#write");
  await idle("write");
});
const story = await text("#text");
console.log(`text (${taken} s, ${await text("#rate")}): ${story}`);
check(/^Once upon a time\b/.test(story), "the text goes on from the prompt");
check(story.length > 120 && (story.match(/[A-Za-z',]+[ .!?"]/g) ?? []).length > 20, "the text is words and sentences");
check(/tokens\/s/.test(await text("#rate")), "the rate is shown");
await picture("generate");

// The same seed writes the same.
await page.click("#write");
await idle("write");
check(await text("#text") === story, "the same seed writes the same text");

await page.click("#tab-verify");
taken = await seconds(async () => {
  await page.click(options.all ? "#verify-all" : "#verify-quick");
  await idle("verify-quick");
});
const sum = await text("#verify-sum");
console.log(`verify (${taken} s): ${sum}`);
const rows = await page.locator("#verify-rows tr").evaluateAll((rows) => rows.map((row) => ({
  name: row.cells[0].firstChild.data,
  counts: [1, 2, 3].map((i) => Number(row.cells[i].textContent)),
  notes: [...row.querySelectorAll("small")].map((note) => [note.className, note.textContent]),
})));
for (const { notes } of rows) {
  for (const [kind, note] of notes) if (kind === "failed") console.log(`  ${note}`);
}
check(/\b0 failed/.test(sum) && /\(done\)/.test(sum) && Number(sum.split(" ")[0]) > 100, "Verify passes in full");
await picture("verify");
if (options.record) {
  const lines = [`adapter: ${await text("#adapter")}`, `tiers: ${await text("#tier")}`];
  for (const { name, counts: [passed, failed], notes } of rows) {
    lines.push(`${failed ? "FAILED" : "ok"} ${name} ${passed} passed ${failed} failed`);
    for (const [kind, note] of notes) {
      const [, count, what] = /: (\d+): (.*)$/.exec(note) ?? [];
      lines.push(kind === "failed" ? `       ${note}` : `${count} skipped: ${what}`);
    }
  }
  if (!/\(done\)/.test(sum)) lines.push(`UNFINISHED the-page: ${await text("#trouble-text")}`);
  writeFileSync(options.record, lines.join("\n") + "\n");
}

await page.click("#tab-bench");
taken = await seconds(async () => {
  await page.click("#bench-start");
  await idle("bench-start");
});
check(await text("#bench-state") === "done", `Bench measures every variant (${taken} s)`);
check(await page.locator("#chart polyline").count() === 5, "Bench draws every variant");
await picture("bench");
check(complaints.length === 0, `no error on the console: ${complaints.join("; ")}`);
complaints.length = 0;

// What goes wrong is said, and the page works on.
await page.click("#tab-generate");
const broken = { name: "broken.gguf", mimeType: "application/octet-stream", buffer: Buffer.from("GGUF nonsense") };
await page.setInputFiles("#file", broken);
await page.locator("#trouble").waitFor();
check(/broken\.gguf/.test(await text("#trouble-text")), `a broken file is refused: ${await text("#trouble-text")}`);

const refused = await page.evaluate(() => window.flashwave.device().allocate(3 << 30).then(() => "", String));
check(/at most/.test(refused), `a tensor that is too large is refused: ${refused}`);

await page.click("#again");
await idle("write");
await page.evaluate(() => window.flashwave.device().destroy());
await page.click("#write");
await page.locator("#trouble").waitFor();
check(/device lost/.test(await text("#trouble-text")), `a lost device is said: ${await text("#trouble-text")}`);
await page.click("#again");
await idle("write");
await page.click("#write");
await idle("write");
check(await text("#text") === story, "started again, it writes as before");

// A browser without WebGPU is told so.
const bare = await browser.newPage();
await bare.addInitScript(() => Object.defineProperty(Navigator.prototype, "gpu", { get: () => undefined }));
await bare.goto(PAGE);
await bare.locator("#trouble").waitFor();
check(/no WebGPU/.test(await bare.locator("#trouble-text").textContent()), "a browser without WebGPU is told so");

await browser.close();
if (failures.length) {
  console.log(`${failures.length} failed`);
  process.exit(1);
}
