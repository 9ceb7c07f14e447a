// `node verify.mjs PAGE FAMILY [--quick] [--portable]`: the page's module (of the folder PAGE) in Node over Dawn, without a
// browser: a family's correctness matrix, printed as `flashwave verify` prints it. VK_DRIVER_FILES chooses the driver.
// That --portable forgoes subgroups is as on the page.
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { create, globals } from "webgpu";

const { values: options, positionals: [page, family] } = parseArgs({
  options: { quick: { type: "boolean", default: false }, portable: { type: "boolean", default: false } },
  allowPositionals: true,
});
// What the module finds in a browser.
Object.assign(globalThis, globals, { Window: Object, window: globalThis });
Object.defineProperty(globalThis, "navigator", { value: { gpu: create(["backend=vulkan"]) } });

// The page's files are modules, which Node knows by a name that ends in .mjs alone.
const load = (name) => import(`data:text/javascript,${encodeURIComponent(readFileSync(`${page}/${name}`, "utf8"))}`);
const { default: init, Device } = await load("flashwave_web.js");
const { requireSubgroups } = await load("subgroups.js");
await init({ module_or_path: readFileSync(`${page}/flashwave_web_bg.wasm`) });
const device = await Device.open(!options.portable && await requireSubgroups());
console.log(`adapter: ${device.adapter}\ntiers: ${device.tier}\ncases: ${options.quick ? "one a group" : "all"}`);

let [passed, failed] = [0, 0];
const missing = new Map();
await device.verify(family, options.quick, (group, held, failures, skipped) => {
  passed += held;
  failed += failures.length;
  for (const line of skipped) {
    const [, count, what] = /^(\d+): (.*)$/.exec(line);
    missing.set(what, (missing.get(what) ?? 0) + Number(count));
  }
  const verdict = failures.length ? "FAILED" : held ? "ok" : "skip";
  console.log(`${verdict.padEnd(6)} ${`${family} ${group}`.padEnd(40)} ${held} passed ${failures.length} failed`);
  for (const failure of failures) console.log(`       ${failure}`);
  return true;
});
for (const [what, count] of missing) console.log(`${count} skipped: ${what}`);
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
