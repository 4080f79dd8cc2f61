/** The memory of the page and its workers, as far as the browser tells. */

import { isolated } from "./environment";

/** Browsers measure when they next tidy up, which may take a while. */
const LONGEST_MS = 40_000;

type MeasureMemory = () => Promise<{ bytes: number }>;

/** True if the browser tells how much memory the page takes, its workers and WebAssembly included. */
export function tellsMemory(): boolean {
  return isolated && "measureUserAgentSpecificMemory" in performance;
}

/** Bytes; null if the browser does not tell in time. */
export async function pageMemory(signal: AbortSignal): Promise<number | null> {
  if (!tellsMemory()) return null;
  const measure = (performance as unknown as { measureUserAgentSpecificMemory: MeasureMemory }).measureUserAgentSpecificMemory;
  const late = new Promise<null>((resolve) => {
    setTimeout(() => resolve(null), LONGEST_MS);
    signal.addEventListener("abort", () => resolve(null), { once: true });
  });
  try {
    return await Promise.race([measure.call(performance).then(({ bytes }) => bytes), late]);
  } catch {
    return null;
  }
}
