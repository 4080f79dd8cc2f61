/** What this browser gives the page: threads, memory, a GPU, a cache. */

/** Threads need memory that workers share, which browsers give only to pages with the two headers. */
export const isolated: boolean = globalThis.crossOriginIsolated === true;

export const cores: number = navigator.hardwareConcurrency || 1;

export const hasGpu: boolean = "gpu" in navigator;

/** Memory in GB as the browser tells it, rounded and capped; null where it does not. */
export const memoryGb: number | null = (navigator as { deviceMemory?: number }).deviceMemory ?? null;

/** Most threads that can be chosen. */
export const mostThreads: number = isolated ? cores : 1;

/**
 * The number of threads unless the user chooses another.
 *
 * A browser counts logical cores: two for each core of most laptops, and large and small ones alike on a phone. All
 * threads wait for the slowest at every layer, so a small core slows the large ones. Half of the count is about the
 * number of full cores in both cases. Above four, decoding waits for memory instead.
 */
export function defaultThreads(): number {
  const half = Math.ceil(cores / 2);
  return Math.min(mostThreads, Math.max(Math.min(half, 4), Math.min(cores, 2)));
}

/** Why there is only one thread, and what helps; null if there is nothing to say. */
export function threadNotice(): string | null {
  if (isolated || cores === 1) return null;
  const secure = globalThis.isSecureContext;
  return secure
    ? "One thread only: this server does not send the two headers that threads need. `ishrink app --serve` does."
    : "One thread only: browsers allow threads over https or from localhost. `ishrink app --serve` on this device has them.";
}
