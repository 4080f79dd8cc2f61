// Builds the site's page: one bundle for each page, the runtime beside it, and page.json that lists every file.
//
//   node build.mjs [FOLDER]      by default ../optimum_ishrink/app/page

import { createHash } from "node:crypto";
import { cp, mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

import { POLICY } from "./csp.mjs";
import { roundToNearest } from "./rounding.mjs";

const here = path.dirname(fileURLToPath(import.meta.url));
const output = path.resolve(process.argv[2] ?? path.join(here, "../optimum_ishrink/app/page"));
const modules = path.join(here, "node_modules");
const packages = path.join(modules, "@wllama");
const fast = path.join(modules, "wllama-fast");

const versions = await readVersions();
await rm(output, { recursive: true, force: true });
for (const name of ["compat", "fast"]) await mkdir(path.join(output, "wasm", name), { recursive: true });

const pages = (await readdir(path.join(here, "static"))).filter((name) => name.endsWith(".html"));
await copyStatic();
await copyRuntime();
await writeLicences();
await bundle(pages.map((name) => `src/${path.basename(name, ".html")}.ts`));

// The service worker comes last: it holds the list of the other files, and changes when one of them does.
const files = await listFiles();
const content = createHash("sha256").update(JSON.stringify(files)).digest("hex").slice(0, 12);
await bundle(["src/sw.ts"], { PAGE_FILES: files.map((file) => file.path), PAGE_CONTENT: content });

const listed = await listFiles();
const kept = keptBytes(listed);
await writeFile(
  path.join(output, "page.json"),
  `${JSON.stringify({ ...versions, content_security_policy: POLICY, kept_bytes: kept, files: listed }, null, 1)}\n`,
);
report(kept, listed.length);

/** The versions of the product, of wllama and of the llama.cpp inside it. */
async function readVersions() {
  const project = await readFile(path.join(here, "../pyproject.toml"), "utf8");
  const wllama = JSON.parse(await readFile(path.join(packages, "wllama/package.json"), "utf8"));
  const compat = JSON.parse(await readFile(path.join(packages, "wllama-compat/package.json"), "utf8"));
  const generated = await readFile(path.join(packages, "wllama/src/workers-code/generated.ts"), "utf8");
  if (wllama.version !== compat.version) {
    throw new Error(`wllama is ${wllama.version} and wllama-compat ${compat.version}: they must be the same`);
  }
  return {
    version: found(project, /^version = "(.+)"$/m),
    wllama: wllama.version,
    llama_cpp: found(generated, /LIBLLAMA_VERSION = '(.+?)'/),
    wllama_fast: JSON.parse(await readFile(path.join(fast, "package.json"), "utf8")).version,
    llama_cpp_fast: await fastBuild(),
  };
}

/** The number and the commit of llama.cpp in the fast runtime: its package holds what CMake wrote of them. */
async function fastBuild() {
  const config = await readFile(path.join(fast, "build/llama.cpp/llama-config.cmake"), "utf8");
  const number = found(config, /LLAMA_VERSION +0\.0\.(\d+)/);
  return `b${number}-${found(config, /LLAMA_BUILD_COMMIT +([0-9a-f]{7})/)}`;
}

function found(text, pattern) {
  const match = pattern.exec(text);
  if (!match) throw new Error(`nothing matches ${pattern}`);
  return match[1];
}

/** Copies static/, and puts the common parts and the policy into each page. */
async function copyStatic() {
  const parts = path.join(here, "static/parts");
  await cp(path.join(here, "static"), output, { recursive: true, filter: (source) => source !== parts });
  const head = (await readFile(path.join(parts, "head.html"), "utf8")).replace("{policy}", POLICY);
  const header = await readFile(path.join(parts, "header.html"), "utf8");
  for (const name of pages) {
    const page = path.join(output, name);
    const text = await readFile(page, "utf8");
    const marked = header.replace(`<a href="${name}">`, `<a href="${name}" aria-current="page">`);
    const script = `<script type="module" src="${path.basename(name, ".html")}.js"></script>`;
    await writeFile(page, text.replace("<!-- head -->", `${head.trim()}\n  ${script}`).replace("<!-- header -->", marked.trim()));
  }
}

async function copyRuntime() {
  await cp(path.join(packages, "wllama/esm/wasm/wllama.wasm"), path.join(output, "wasm/wllama.wasm"));
  for (const name of ["wllama.wasm", "wllama.js"]) {
    await cp(path.join(packages, "wllama-compat/wasm", name), path.join(output, "wasm/compat", name));
  }
  for (const name of ["single", "multi"]) {
    const wasm = await readFile(path.join(fast, `esm/${name}-thread/wllama.wasm`));
    await writeFile(path.join(output, `wasm/fast/${name}.wasm`), roundToNearest(wasm));
  }
}

async function writeLicences() {
  const wllama = await readFile(path.join(packages, "wllama/LICENCE"), "utf8");
  const wllamaFast = await readFile(path.join(fast, "LICENCE"), "utf8");
  const jinja = await readFile(path.join(modules, "@huggingface/jinja/LICENSE"), "utf8");
  const runtime = await readFile(path.join(here, "licences/llama.cpp.txt"), "utf8");
  const own = await readFile(path.join(here, "../LICENSE"), "utf8");
  const rule = `\n${"-".repeat(80)}\n\n`;
  const titles = `optimum-ishrink ${versions.version}: Apache License 2.0, at the end
@wllama/wllama ${versions.wllama} and @wllama/wllama-compat ${versions.wllama}: MIT License
llama.cpp ${versions.llama_cpp}, compiled into wasm/wllama.wasm and wasm/compat/wllama.wasm: MIT License
@wllama/wllama ${versions.wllama_fast}: MIT License
llama.cpp ${versions.llama_cpp_fast}, compiled into wasm/fast/single.wasm and wasm/fast/multi.wasm, which round otherwise here (app/rounding.mjs): MIT License
@huggingface/jinja: MIT License
`;
  const parts = {
    [`@wllama/wllama ${versions.wllama} and @wllama/wllama-compat`]: wllama,
    [`@wllama/wllama ${versions.wllama_fast}`]: wllamaFast,
    "@huggingface/jinja": jinja,
  };
  const packaged = Object.entries(parts).map(([title, licence]) => `${title}\n\n${licence.trim()}\n`);
  const text = [titles, ...packaged, runtime, own].join(rule);
  await writeFile(path.join(output, "licences.txt"), text);
}

async function bundle(entryPoints, constants = {}) {
  const fastNames = { WLLAMA_FAST_VERSION: versions.wllama_fast, LLAMA_CPP_FAST_BUILD: versions.llama_cpp_fast };
  const names = { PAGE_VERSION: versions.version, WLLAMA_VERSION: versions.wllama, LLAMA_CPP_BUILD: versions.llama_cpp, ...fastNames };
  await build({
    absWorkingDir: here,
    entryPoints,
    outdir: output,
    bundle: true,
    // What several pages share is one file, and so is what only one of the runtimes needs: its name says which.
    splitting: true,
    chunkNames: "shared-[name]-[hash]",
    minify: true,
    format: "esm",
    target: "es2022",
    charset: "utf8",
    legalComments: "none",
    logLevel: "warning",
    define: Object.fromEntries(
      Object.entries({ ...names, ...constants }).map(([name, value]) => [name, JSON.stringify(value)]),
    ),
  });
}

/** Every built file with its size and checksum, in the order of their names. */
async function listFiles() {
  const entries = await readdir(output, { recursive: true, withFileTypes: true });
  const names = entries
    .filter((entry) => entry.isFile())
    .map((entry) => path.relative(output, path.join(entry.parentPath ?? entry.path, entry.name)))
    .map((name) => name.split(path.sep).join("/"))
    .sort();
  return Promise.all(
    names.map(async (name) => {
      const bytes = await readFile(path.join(output, name));
      return { path: name, bytes: bytes.length, sha256: createHash("sha256").update(bytes).digest("hex") };
    }),
  );
}

/** Bytes that a browser keeps of the page, without models, by the runtime that it uses (src/runtime_build.ts). */
function keptBytes(files) {
  const isFast = (name) => name.startsWith("wasm/fast/") || name.includes("fast_engine");
  const isCompat = (name) => name.startsWith("wasm/compat/");
  const isDefault = (name) => name === "wasm/wllama.wasm";
  const isCurrent = (name) => isCompat(name) || isDefault(name) || name.includes("current_engine");
  const sum = (spare) => files.filter((file) => !spare(file.path)).reduce((total, file) => total + file.bytes, 0);
  return {
    fast: sum(isCurrent),
    current: sum((name) => isFast(name) || isCompat(name)),
    compat: sum((name) => isFast(name) || isDefault(name)),
  };
}

function report({ fast, current, compat }, count) {
  console.log(`${output}: ${count} files`);
  console.log(`  kept without models: ${fast} bytes with the fast runtime, ${current} with the current one,`);
  console.log(`  and ${compat} with that where memory64 or JSPI is missing`);
}
