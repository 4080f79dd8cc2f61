/** Which of the two builds of llama.cpp this browser runs. The service worker asks as well, to keep only that one. */

export type RuntimeBuild = "default" | "compat";

/** Where each build's files are, relative to the page. */
export const RUNTIME_FILES: Record<RuntimeBuild, readonly string[]> = {
  default: ["wasm/wllama.wasm"],
  compat: ["wasm/compat/wllama.wasm", "wasm/compat/wllama.js"],
};

/**
 * The default build needs 64-bit memory, and a way to suspend WebAssembly while a file is read (JSPI). Firefox has the
 * first and runs the default build without the second; Safari has neither.
 */
export function runtimeBuild(): RuntimeBuild {
  if (!hasMemory64()) return "compat";
  const firefox = /Firefox\/\d/.test(navigator.userAgent);
  return "Suspending" in WebAssembly || firefox ? "default" : "compat";
}

function hasMemory64(): boolean {
  try {
    // TypeScript's library does not know 64-bit memory yet.
    new WebAssembly.Memory({ address: "i64", initial: 1n } as unknown as WebAssembly.MemoryDescriptor);
    return true;
  } catch {
    return false;
  }
}
