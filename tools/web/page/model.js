// A model's files: names and contents, as `Writer.load` takes them.

const wanted = (name) => /(\.safetensors|\.gguf|\.bin|^config\.json|^tokenizer\.json|\.index\.json)$/.test(name);

async function read(title, files) {
  const model = files.filter((file) => wanted(file.name));
  if (!model.length) throw Error(`${title}: neither a GGUF file nor a folder with config.json and safetensors`);
  const bytes = model.map(async (file) => new Uint8Array(await file.arrayBuffer()));
  return { title, names: model.map((file) => file.name), contents: await Promise.all(bytes) };
}

/** The one that is served beside the page. */
export async function embedded() {
  const names = ["config.json", "model.safetensors", "tokenizer.json"];
  const contents = names.map(async (name) => {
    const answer = await fetch(`model/${name}`);
    if (!answer.ok) throw Error(`model/${name}: ${answer.status}`);
    return new Uint8Array(await answer.arrayBuffer());
  });
  return { title: "the embedded one", names, contents: await Promise.all(contents) };
}

/** What a file input holds: a file, or all files of a folder. */
export function fromInput(list) {
  const files = [...list];
  const path = files[0]?.webkitRelativePath;
  return read(path ? path.split("/")[0] : files[0]?.name, files);
}

/** What was dropped: files, or a folder's. */
export async function fromDrop(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const folder = entries.find((entry) => entry.isDirectory);
  if (!folder) return fromInput(transfer.files);
  const reader = folder.createReader();
  const found = [];
  // Browsers hand a folder's entries out in portions.
  for (;;) {
    const some = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!some.length) break;
    found.push(...some.filter((entry) => entry.isFile));
  }
  const files = found.map((entry) => new Promise((done, fail) => entry.file(done, fail)));
  return read(folder.name, await Promise.all(files));
}
