/** How much memory each model takes in the page. */

import { isolated } from "./environment";
import { pageMemory, tellsMemory } from "./page_memory";
import type { Progress } from "./progress";
import type { ModelEntry, Role } from "./site";

export interface MemoryFound {
  bytes: Map<Role, number>;
  notes: string[];
}

/**
 * The memory of the page and its workers with one model that has answered. WebAssembly gives no memory back, so that it
 * is also the most that the model took.
 *
 * @param answered Loads a model alone, and lets it answer; returns how to be rid of it.
 */
export async function measureMemory(
  models: readonly ModelEntry[],
  answered: (entry: ModelEntry) => Promise<() => Promise<void>>,
  progress: Progress,
  signal: AbortSignal,
): Promise<MemoryFound> {
  if (!tellsMemory()) {
    const why = isolated ? "this browser does not report it" : "browsers report it only to pages that are isolated by the server's headers";
    return { bytes: new Map(), notes: [`memory was not measured: ${why}`] };
  }
  const bytes = new Map<Role, number>();
  for (const entry of models) {
    progress.say(`Measuring the memory of ${entry.name}`);
    const close = await answered(entry);
    const found = await pageMemory(signal);
    await close();
    if (found === null) {
      return { bytes: new Map(), notes: ["memory was not measured: the browser did not report it in time"] };
    }
    bytes.set(entry.role, found);
  }
  return { bytes, notes: ["memory: the page and its workers with one model loaded, once, as the browser reports it"] };
}
