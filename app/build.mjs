// Builds the site's page: one bundle for each page, the runtime beside it, and page.json that lists every file.
//
//   node build.mjs [FOLDER]      by default ../optimum_ishrink/app/page

import { createHash } from "node:crypto";
import { cp, mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

import { POLICY } from "./csp.mjs";

const here = path.dirname(fileURLToPath(import.meta.url));
const output = path.resolve(process.argv[2] ?? path.join(here, "../optimum_ishrink/app/page"));
const packages = path.join(here, "node_modules/@wllama");

const versions = await readVersions();
await rm(output, { recursive: true, force: true });
await mkdir(path.join(output, "wasm/compat"), { recursive: true });

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
await writeFile(
  path.join(output, "page.json"),
  `${JSON.stringify({ ...versions, content_security_policy: POLICY, files: listed }, null, 1)}\n`,
);
report(listed);

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
  };
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
}

async function writeLicences() {
  const wllama = await readFile(path.join(packages, "wllama/LICENCE"), "utf8");
  const runtime = await readFile(path.join(here, "licences/llama.cpp.txt"), "utf8");
  const own = await readFile(path.join(here, "../LICENSE"), "utf8");
  const rule = `\n${"-".repeat(80)}\n\n`;
  const titles = `optimum-ishrink ${versions.version}: Apache License 2.0, at the end
@wllama/wllama ${versions.wllama} and @wllama/wllama-compat ${versions.wllama}: MIT License
llama.cpp ${versions.llama_cpp}, compiled into wasm/wllama.wasm and wasm/compat/wllama.wasm: MIT License
`;
  const text = [titles, `@wllama/wllama and @wllama/wllama-compat\n\n${wllama.trim()}\n`, runtime, own].join(rule);
  await writeFile(path.join(output, "licences.txt"), text);
}

async function bundle(entryPoints, constants = {}) {
  const names = { PAGE_VERSION: versions.version, WLLAMA_VERSION: versions.wllama, LLAMA_CPP_BUILD: versions.llama_cpp };
  await build({
    absWorkingDir: here,
    entryPoints,
    outdir: output,
    bundle: true,
    // What several pages share is one file.
    splitting: true,
    chunkNames: "shared-[hash]",
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

function report(files) {
  const sum = (keep) => files.filter((file) => keep(file.path)).reduce((total, file) => total + file.bytes, 0);
  const compat = (name) => name.startsWith("wasm/compat/");
  const other = (name) => name === "wasm/wllama.wasm";
  console.log(`${output}: ${files.length} files`);
  console.log(`  without models ${sum((name) => !compat(name))} bytes; where memory64 or JSPI is missing ${sum((name) => !other(name))} bytes`);
}
