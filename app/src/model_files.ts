/**
 * The models' files: fetched in parts, checked, and kept on the device.
 *
 * Parts stay in the Cache API, where there is one: browsers have it over https and from localhost alone.
 */

import { DamagedFile } from "./errors";
import { formatBytes } from "./format";
import type { ModelEntry, ModelPart } from "./site";

export interface FetchProgress {
  loadedBytes: number;
  totalBytes: number;
  fromCache: boolean;
}

export interface FetchOptions {
  /** "reload" fetches from the server although the parts are cached, and past the browser's own cache. */
  cache?: "use" | "reload";
  onProgress?: (progress: FetchProgress) => void;
  signal?: AbortSignal;
}

export interface FetchedModel {
  file: Blob;
  seconds: number;
}

const CACHE = "ishrink-models";

/** Fetches a model's file, from the device where it is cached. */
export async function fetchModel(entry: ModelEntry, options: FetchOptions = {}): Promise<FetchedModel> {
  const started = performance.now();
  const cache = await openCache();
  const blobs: Blob[] = [];
  let loadedBytes = 0;
  let fromCache = true;
  const report = (more: number): void => {
    options.onProgress?.({ loadedBytes: loadedBytes + more, totalBytes: entry.bytes, fromCache });
  };
  for (const part of entry.parts) {
    options.signal?.throwIfAborted();
    let blob = options.cache === "reload" ? null : await cachedPart(cache, part);
    if (!blob) {
      fromCache = false;
      blob = await download(entry, part, options, report);
      blob = await keep(cache, part, blob);
    }
    blobs.push(blob);
    loadedBytes += part.bytes;
    report(0);
  }
  if (loadedBytes !== entry.bytes) {
    throw new DamagedFile(`models.json lists parts of ${loadedBytes} bytes for ${entry.file} of ${entry.bytes}. ${AGAIN}`);
  }
  return { file: new Blob(blobs), seconds: (performance.now() - started) / 1000 };
}

/** True if the whole file is on the device already. */
export async function isCached(entry: ModelEntry): Promise<boolean> {
  const cache = await openCache();
  if (!cache) return false;
  const found = await Promise.all(entry.parts.map((part) => cache.match(part.path)));
  return found.every((response) => response !== undefined);
}

/** Removes parts that this site no longer lists. Other sites of the same address keep theirs. */
export async function forgetOthers(entries: readonly ModelEntry[]): Promise<void> {
  const cache = await openCache();
  if (!cache) return;
  const folder = new URL("models/", document.baseURI).href;
  const listed = new Set(entries.flatMap((entry) => entry.parts.map((part) => new URL(part.path, document.baseURI).href)));
  for (const request of await cache.keys()) {
    if (request.url.startsWith(folder) && !listed.has(request.url)) await cache.delete(request);
  }
}

const AGAIN = "Copy the whole site again, or make it again with ishrink app.";

async function openCache(): Promise<Cache | null> {
  if (!("caches" in globalThis)) return null;
  try {
    return await caches.open(CACHE);
  } catch {
    return null; // private windows of some browsers refuse
  }
}

async function cachedPart(cache: Cache | null, part: ModelPart): Promise<Blob | null> {
  const response = await cache?.match(part.path);
  if (!response) return null;
  const blob = await response.blob();
  return blob.size === part.bytes ? blob : null;
}

/** Caches a part, and returns it as the cache holds it: on the disk, not in memory. */
async function keep(cache: Cache | null, part: ModelPart, blob: Blob): Promise<Blob> {
  if (!cache) return blob;
  try {
    await cache.put(part.path, new Response(blob));
    return (await cachedPart(cache, part)) ?? blob;
  } catch {
    return blob; // no room on the device: the model works, and is fetched again next time
  }
}

async function download(
  entry: ModelEntry,
  part: ModelPart,
  options: FetchOptions,
  report: (bytes: number) => void,
): Promise<Blob> {
  const name = part.path.split("/").pop() ?? part.path;
  const request: RequestInit = { cache: options.cache === "reload" ? "reload" : "no-store" };
  if (options.signal) request.signal = options.signal;
  let response: Response;
  const chunks: BlobPart[] = [];
  let bytes = 0;
  try {
    response = await fetch(part.path, request);
    if (!response.ok || !response.body) {
      throw new DamagedFile(`The server answers ${response.status} for ${name} of ${entry.file}. ${AGAIN}`);
    }
    const reader = response.body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      chunks.push(value);
      bytes += value.byteLength;
      report(bytes);
    }
  } catch (error) {
    if (error instanceof DamagedFile || options.signal?.aborted) throw error;
    throw new Error(`The connection was lost while ${entry.file} was fetched. Check it, then load the model again.`);
  }
  const blob = new Blob(chunks);
  await check(entry, part, blob, name);
  return blob;
}

async function check(entry: ModelEntry, part: ModelPart, blob: Blob, name: string): Promise<void> {
  if (blob.size !== part.bytes) {
    const sizes = `${formatBytes(blob.size)} instead of ${formatBytes(part.bytes)}`;
    throw new DamagedFile(`The file ${entry.file} is damaged: ${name} has ${sizes}. ${AGAIN}`);
  }
  if (!globalThis.crypto?.subtle) return; // plain http from another host has no checksums
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await blob.arrayBuffer()));
  const sha256 = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (sha256 !== part.sha256) {
    throw new DamagedFile(`The file ${entry.file} is damaged: the checksum of ${name} is another. ${AGAIN}`);
  }
}
