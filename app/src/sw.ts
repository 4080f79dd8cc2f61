/// <reference lib="webworker" />
/**
 * The service worker: keeps the page's files for use without a network.
 *
 * The build fills in the list of files and a checksum of their content, so that a new page makes a new cache. Models
 * are kept by the page itself (model_files.ts).
 */

import { isSpare, runtimeFor, type RunnableModel, type RuntimeName } from "./runtime_build";

declare const self: ServiceWorkerGlobalScope;
declare const PAGE_FILES: readonly string[];
declare const PAGE_CONTENT: string;

const PREFIX = `ishrink-page ${new URL("./", self.location.href).pathname} `;
const CACHE = PREFIX + PAGE_CONTENT;

/** Written by Python beside the page: the newest from the server, the cached one without a network. */
const LISTS = ["models.json"];

/** Threads need these; a plain static host does not send them, but the page may come from the cache with them. */
const ISOLATION: Record<string, string> = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};

self.addEventListener("install", (event) => event.waitUntil(install()));
self.addEventListener("activate", (event) => event.waitUntil(activate()));
self.addEventListener("fetch", (event) => {
  const name = nameOf(event.request);
  if (name === null) return;
  event.respondWith(LISTS.includes(name) ? newest(name) : cached(name));
});

async function install(): Promise<void> {
  const cache = await caches.open(CACHE);
  await Promise.all(LISTS.map((name) => cache.add(name).catch(() => undefined)));
  const runtime = await siteRuntime(cache);
  const wanted = PAGE_FILES.filter((name) => !isSpare(name, runtime));
  await cache.addAll(wanted.map((name) => new Request(name, { cache: "no-cache" })));
  // No skipWaiting: pages that are open go on with the files that they were opened with.
}

/** The runtime that the page will choose. If it uses the other one after all, that is kept when it is asked for. */
async function siteRuntime(cache: Cache): Promise<RuntimeName> {
  const list = await cache.match("models.json");
  try {
    const site = (await list?.json()) as { models?: RunnableModel[] } | undefined;
    return runtimeFor(site?.models ?? []);
  } catch {
    return "current"; // the page says what is wrong with its list
  }
}

async function activate(): Promise<void> {
  const old = (await caches.keys()).filter((name) => name.startsWith(PREFIX) && name !== CACHE);
  await Promise.all(old.map((name) => caches.delete(name)));
  await self.clients.claim();
}

/** The file's name beside the page, or null if the request is none of this worker's. */
function nameOf(request: Request): string | null {
  const folder = new URL("./", self.location.href).href;
  const address = request.url.split(/[?#]/)[0] ?? "";
  if (request.method !== "GET" || !address.startsWith(folder)) return null;
  const name = address.slice(folder.length) || "index.html";
  return PAGE_FILES.includes(name) || LISTS.includes(name) ? name : null;
}

async function cached(name: string): Promise<Response> {
  const cache = await caches.open(CACHE);
  const kept = await cache.match(name);
  if (kept) return isolated(kept);
  const response = await fetch(name, { cache: "no-cache" });
  if (response.ok) await cache.put(name, response.clone()).catch(() => undefined); // no room on the device
  return isolated(response);
}

async function newest(name: string): Promise<Response> {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(name, { cache: "no-cache" });
    if (response.ok) await cache.put(name, response.clone()).catch(() => undefined); // no room on the device
    return isolated(response);
  } catch {
    return isolated((await cache.match(name)) ?? Response.error());
  }
}

function isolated(response: Response): Response {
  // A page may not be answered with a response that was redirected, as hosts do that leave out index.html: copy it.
  if (response.type === "error" || (response.headers.has("Cross-Origin-Embedder-Policy") && !response.redirected)) return response;
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(ISOLATION)) headers.set(name, value);
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
