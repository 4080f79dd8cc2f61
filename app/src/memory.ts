/** How much memory a model takes, and whether the browser gives that much. */

import { memoryGb } from "./environment";
import { TooLittleMemory } from "./errors";
import { runtimeBuild } from "./runtime_build";
import { chosenRuntime } from "./runtime_choice";
import type { ModelEntry } from "./site";

/** The runtime itself, and what it computes in. */
const RUNTIME_BYTES = 64 * 2 ** 20;

/** The runtime declares at most this much for one model. */
const MOST_BYTES = 4 * 2 ** 30;

const PAGE_BYTES = 65536;

/** Bytes that a model takes with a context of this many tokens. */
export function neededBytes(entry: ModelEntry, contextTokens: number): number {
  return entry.bytes + entry.kv_cache_bytes_per_token * contextTokens + RUNTIME_BYTES;
}

/**
 * Fails if the browser does not let the page have that much memory.
 *
 * @param needed Bytes for the model that is loaded next.
 * @param loaded Bytes that loaded models already take.
 */
export function checkMemory(needed: number, loaded = 0): void {
  // The browser's figure is capped, so that only a small one says something about a large model.
  const device = memoryGb !== null && memoryGb < 8 ? memoryGb * 2 ** 30 : Infinity;
  if (needed > MOST_BYTES || needed + loaded > device || !canReserve(needed)) throw new TooLittleMemory(needed);
}

function canReserve(bytes: number): boolean {
  const pages = Math.ceil(bytes / PAGE_BYTES);
  const wide = chosenRuntime(false) === "current" && runtimeBuild() === "default";
  const descriptor = wide ? { address: "i64", initial: BigInt(pages) } : { initial: pages };
  try {
    // TypeScript's library does not know 64-bit memory yet.
    new WebAssembly.Memory(descriptor as unknown as WebAssembly.MemoryDescriptor);
    return true;
  } catch {
    return false;
  }
}
