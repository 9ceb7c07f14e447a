// The page in a headless Chromium on its software adapter. Environment: PAGE (its address), CHROMIUM (the program),
// OUT (a folder). Without options: text, some families of kernels, the chart, and what goes wrong, in two browsers side by
// side, as most of it is compiling shaders on one thread. With --quick or --all: Verify alone, all families, one case
// a group or all; --record FILE then keeps what it said as `flashwave verify` prints it. --screenshots.
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
// Those that compile within seconds; text and chart run products and attention.
const FAMILIES = ["elementwise", "embedding", "norm", "random", "select", "softmax"];
mkdirSync(OUT, { recursive: true });

const failures = [];
const check = (holds, what) => {
  console.log(`${holds ? "ok" : "FAILED"}: ${what}`);
  if (!holds) failures.push(what);
};
const seconds = async (task) => {
  const started = Date.now();
  await task();
  return ((Date.now() - started) / 1000).toFixed(1);
};

const launch = () => chromium.launch({
  executablePath: CHROMIUM,
  headless: true,
  // Others give no adapter on a machine without a GPU.
  args: ["--no-sandbox", "--enable-unsafe-webgpu"],
});

// The page in a browser of its own, and what a test does with it.
async function open() {
  const browser = await launch();
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  const complaints = [];
  page.on("console", (message) => {
    if (message.type() === "error") complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  const ui = {
    browser,
    page,
    text: (selector) => page.locator(selector).textContent(),
    // Until a button can be pressed again, or something has gone wrong.
    idle: (button) => page.waitForFunction(
      (id) => !document.getElementById(id).disabled || !document.getElementById("trouble").hidden,
      button,
      { timeout: 7200e3 },
    ),
    // Presses it and waits; whether something went wrong is shown on the page.
    attempt: async (button, until = button) => {
      await page.click(`#${button}`);
      await ui.idle(until);
    },
    press: async (button, until) => {
      await ui.attempt(button, until);
      if (await page.locator("#trouble").isVisible()) throw Error(`${button}: ${await ui.text("#trouble-text")}`);
    },
    picture: async (name) => {
      if (!options.screenshots) return;
      for (const [size, width, height] of [["desktop", 1280, 900], ["phone", 390, 844]]) {
        await page.setViewportSize({ width, height });
        await page.screenshot({ path: `${OUT}/${name}-${size}.png`, fullPage: true });
        const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
        check(!wide, `${name} fits a ${size}`);
      }
    },
    quiet: (what) => {
      check(complaints.length === 0, `${what}: no error on the console ${complaints.join("; ")}`);
      complaints.length = 0;
    },
  };
  const taken = await seconds(async () => {
    await page.goto(PAGE);
    await ui.idle("write");
  });
  if (await page.locator("#trouble").isVisible()) throw Error(`the page: ${await ui.text("#trouble-text")}`);
  check(true, `the page opens a device and loads the model (${taken} s)`);
  return ui;
}

// What Verify says of its rows.
const rowsOf = (page) => page.locator("#verify-rows tr").evaluateAll((rows) => rows.map((row) => ({
  name: row.cells[0].firstChild.data,
  counts: [1, 2, 3].map((i) => Number(row.cells[i].textContent)),
  notes: [...row.querySelectorAll("small")].map((note) => [note.className, note.textContent]),
})));

// Runs Verify; what it came to.
async function verify(ui, button, what) {
  const taken = await seconds(() => ui.attempt(button));
  const sum = await ui.text("#verify-sum");
  console.log(`verify ${what} (${taken} s): ${sum}`);
  const rows = await rowsOf(ui.page);
  for (const { name, notes } of rows) {
    for (const [kind, note] of notes) if (kind === "failed") console.log(`  ${name} ${note}`);
  }
  if (await ui.page.locator("#trouble").isVisible()) console.log(`  ${await ui.text("#trouble-text")}`);
  check(/^[1-9]\d* passed, 0 failed\b.*\(done\)/.test(sum), `${what} passes`);
  return { rows, sum };
}

// What the embedded model writes, and what goes wrong.
async function writes() {
  const ui = await open();
  const { page } = ui;
  console.log(`adapter: ${await ui.text("#adapter")}; tier: ${await ui.text("#tier")}`);
  await page.fill("#tokens", "32");
  let taken = await seconds(() => ui.press("write"));
  const story = await ui.text("#text");
  console.log(`text (${taken} s, ${await ui.text("#rate")}): ${story}`);
  check(/^Once upon a time\b/.test(story), "the text goes on from the prompt");
  check((story.match(/[A-Za-z',]+[ .!?"]/g) ?? []).length > 12 && /\. [A-Z]/.test(story), "the text is words and sentences");
  check(/tokens\/s/.test(await ui.text("#rate")), "the rate is shown");
  await ui.picture("generate");
  // From the beginning: for what follows the kernels of a prompt need not be compiled again.
  await page.fill("#prompt", "");
  await page.fill("#tokens", "12");
  await ui.press("write");
  const opening = await ui.text("#text");
  check(/^[A-Z][a-z]+ /.test(opening), `a text begins without a prompt: ${opening}`);
  ui.quiet("text");

  // What goes wrong is said, and the page works on.
  const broken = { name: "broken.gguf", mimeType: "application/octet-stream", buffer: Buffer.from("GGUF nonsense") };
  const trouble = async () => {
    await page.locator("#trouble").waitFor();
    return ui.text("#trouble-text");
  };
  await page.setInputFiles("#file", broken);
  let said = await trouble();
  check(/broken\.gguf/.test(said), `a broken file is refused: ${said}`);
  const answer = (ask) => page.evaluate(ask).then(() => "", (error) => error.message.split("\n")[0]);
  said = await answer(() => window.flashwave.device().allocate(3 << 30));
  check(/at most/.test(said), `a tensor that is too large is refused: ${said}`);
  said = await answer(() => window.flashwave.device().overreach());
  check(/workgroup/.test(said), `what the device refuses is said: ${said}`);
  said = await answer(() => window.flashwave.device().allocate(1 << 10));
  check(said === "", `the device works after that ${said}`);

  await ui.press("again", "write");
  check(await page.locator("#trouble").isHidden(), "the page starts again");
  await page.evaluate(() => window.flashwave.device().destroy());
  await page.click("#write");
  said = await trouble();
  check(/device lost/.test(said), `a lost device is said: ${said}`);
  check(await page.locator("#again").isVisible(), "the page offers to start again");
  await ui.press("again", "write");
  taken = await seconds(() => ui.press("write"));
  check(await ui.text("#text") === opening, `started again, it writes as before (${taken} s)`);

  // A browser without WebGPU is told so.
  const bare = await ui.browser.newPage();
  await bare.addInitScript(() => Object.defineProperty(Navigator.prototype, "gpu", { get: () => undefined }));
  await bare.goto(PAGE);
  await bare.locator("#trouble").waitFor();
  check(/no WebGPU/.test(await bare.locator("#trouble-text").textContent()), "a browser without WebGPU is told so");
  await ui.browser.close();
}

// Some families of kernels, and the chart.
async function measures() {
  const ui = await open();
  const { page } = ui;
  await page.click("#tab-verify");
  for (const family of FAMILIES) {
    await page.selectOption("#family", family);
    await verify(ui, "verify-quick", family);
  }
  await ui.picture("verify");
  await page.click("#tab-bench");
  const taken = await seconds(() => ui.press("bench-start"));
  check(await ui.text("#bench-state") === "done", `Bench measures every variant (${taken} s)`);
  check(await page.locator("#chart polyline").count() === 5, "Bench draws every variant");
  await ui.picture("bench");
  ui.quiet("Verify and Bench");
  await ui.browser.close();
}

// All families of kernels.
async function verifies() {
  const ui = await open();
  await ui.page.click("#tab-verify");
  const { rows, sum } = await verify(ui, options.all ? "verify-all" : "verify-quick", "every family");
  if (options.record) {
    const cases = options.all ? "all" : "one a group";
    const lines = [`adapter: ${await ui.text("#adapter")}`, `tiers: ${await ui.text("#tier")}`, `cases: ${cases}`];
    for (const { name, counts: [passed, failed], notes } of rows) {
      lines.push(`${failed ? "FAILED" : "ok"} ${name} ${passed} passed ${failed} failed`);
      for (const [kind, note] of notes) {
        const [, count, what] = /: (\d+): (.*)$/.exec(note) ?? [];
        lines.push(kind === "failed" ? `       ${note}` : `${count} skipped: ${what}`);
      }
    }
    if (!/\(done\)/.test(sum)) lines.push(`UNFINISHED the-page: ${await ui.text("#trouble-text")}`);
    writeFileSync(options.record, lines.join("\n") + "\n");
  }
  await ui.picture("verify");
  ui.quiet("Verify");
  await ui.browser.close();
}

const parts = options.quick || options.all ? [verifies()] : [writes(), measures()];
for (const part of await Promise.allSettled(parts)) {
  if (part.status === "rejected") check(false, String(part.reason));
}
if (failures.length) console.log(`${failures.length} failed`);
process.exit(failures.length ? 1 : 0);
