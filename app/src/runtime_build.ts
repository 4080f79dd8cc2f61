/**
 * The runtimes of the page: two builds of llama.cpp for WebAssembly, and which of them can run a model.
 *
 * The service worker asks as well, to keep only the files that the page uses.
 */

/**
 * `fast`: an older llama.cpp (wllama 2.2.1), compiled with its kernels for 128-bit vectors and for 32-bit memory.
 * `current`: a new one (wllama 3.13.0) that knows every architecture and the GPU, compiled without these kernels.
 */
export type RuntimeName = "fast" | "current";

/** The two builds of the current runtime. */
export type RuntimeBuild = "default" | "compat";

/** Where the fast runtime's files are, relative to the page. */
export const FAST_FILES = { single: "wasm/fast/single.wasm", multi: "wasm/fast/multi.wasm" } as const;

/** Where each build's files of the current runtime are, relative to the page. */
export const RUNTIME_FILES: Record<RuntimeBuild, readonly string[]> = {
  default: ["wasm/wllama.wasm"],
  compat: ["wasm/compat/wllama.wasm", "wasm/compat/wllama.js"],
};

/**
 * Architectures whose files of today's converter the fast runtime runs as a current llama.cpp does.
 *
 * How it was found: for each architecture that the WebAssembly file names and the product's converter writes, a tiny
 * model of random weights was converted, and its 20 most probable next tokens after 150 others were the same ones as in
 * the native llama.cpp of the same day, their probabilities within 1 %.
 *
 * Left out: gemma2, which stops the fast runtime unless it has as many layers as a published model; olmo2, which also
 * stands for OLMo 3, whose sliding window the fast runtime does not know; phi3, whose sliding window it alone applies;
 * gpt2, whose tiny model it does not load.
 */
const FAST_ARCHITECTURES: readonly string[] = [
  "cohere2",
  "command-r",
  "gemma",
  "granite",
  "llama",
  "nemotron",
  "olmo",
  "phi2",
  "qwen2",
  "stablelm",
  "starcoder2",
];

/** Types of tensors that the fast runtime knows, as GGUF names them: those of ggml.h at its build. */
const FAST_TYPES =
  /^(f32|f16|bf16|q4_0|q4_1|q5_0|q5_1|q8_0|q[2-6]_k|iq1_[sm]|iq2_(xxs|xs|s)|iq3_(xxs|s)|iq4_(nl|xs)|tq[12]_0)$/;

/** Its memory has 32-bit addresses, and it reads files by signed ones. */
const FAST_MOST_BYTES = 2 ** 31;

/** What models.json says of a model that matters here. */
export interface RunnableModel {
  architecture: string;
  bytes: number;
  /** Where they are missing, loading shows whether they are known. */
  tensor_types?: string[];
}

/** The runtime for a site's models without a GPU. All have the same, because they are compared. */
export function runtimeFor(models: readonly RunnableModel[]): RuntimeName {
  return models.length > 0 && models.every(runsFast) ? "fast" : "current";
}

function runsFast({ architecture, bytes, tensor_types: types = [] }: RunnableModel): boolean {
  return FAST_ARCHITECTURES.includes(architecture) && bytes < FAST_MOST_BYTES && types.every((type) => FAST_TYPES.test(type));
}

/** True for a file of the page that this browser does not need to run models of a site. */
export function isSpare(file: string, runtime: RuntimeName): boolean {
  const otherBuild = RUNTIME_FILES[runtimeBuild() === "default" ? "compat" : "default"];
  if (otherBuild.includes(file)) return true;
  const fast = file.startsWith("wasm/fast/") || file.includes("fast_engine");
  const current = file.includes("current_engine") || (file.startsWith("wasm/") && !fast);
  return runtime === "fast" ? current : fast;
}

/**
 * Which build of the current runtime this browser runs. The default one needs 64-bit memory, and a way to suspend
 * WebAssembly while a file is read (JSPI). Firefox has the first and runs the default build without the second; Safari
 * has neither.
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
