/** Failures as one plain sentence that says what is wrong and what to do. */

import { formatBytes } from "./format";

/** A failure of the runtime, with the last lines that llama.cpp logged. */
export class RuntimeFailure extends Error {
  override readonly name = "RuntimeFailure";
  constructor(
    message: string,
    readonly log: readonly string[],
  ) {
    super(message);
  }
}

/** A model's file that is not what models.json says. */
export class DamagedFile extends Error {
  override readonly name = "DamagedFile";
}

/** Thrown before a model is loaded, and when loading it fails for want of memory. */
export class TooLittleMemory extends Error {
  override readonly name = "TooLittleMemory";
  constructor(readonly needed: number) {
    super(
      `The model needs about ${formatBytes(needed)} of memory, and this browser does not give the page that much. ` +
        "Close other tabs, choose a shorter context in the settings, or load one model only.",
    );
  }
}

/** A conversation that is longer than the model's context. */
export class ContextFull extends Error {
  override readonly name = "ContextFull";
  constructor(readonly contextTokens: number) {
    super(`The conversation does not fit into the ${contextTokens} tokens of context.`);
  }
}

/** Stopped by the user. */
export function isAbort(error: unknown): boolean {
  return error instanceof Error && error.name === "AbortError";
}

const RULES: readonly [RegExp, (match: RegExpExecArray) => string][] = [
  [
    /unknown model architecture:? '?([\w.-]+)'?/i,
    (match) =>
      `The runtime does not know the architecture ${match[1]}. Make the site with a newer optimum-ishrink, or choose a model of another architecture.`,
  ],
  [
    /invalid ggml type (\d+)|unknown (?:tensor )?type|unsupported (?:tensor )?type|type .* is not supported/i,
    () =>
      "The file has tensors of a type that the runtime does not know. Export the model again with a type that it has, for instance: ishrink export --quantization q4_0",
  ],
  [
    /not within the file bounds|corrupted or incomplete|unexpectedly reached end|failed to read|read out of bound|past the end/i,
    () => "The model's file is cut short. Copy the whole site again, or make it again with ishrink app.",
  ],
  [
    /invalid magic|not a GGUF|gguf_init|failed to load (?:gguf|model) header/i,
    () => "The model's file is not a GGUF file that the runtime reads. Make the site again with ishrink app.",
  ],
  [
    /exception handling|does not support SIMD|WebAssembly is not defined/i,
    () => "This browser has no WebAssembly with SIMD and exceptions. Update it, or use a current Chrome, Edge, Firefox or Safari.",
  ],
  [
    /CompileError|wasm validation|version_mismatch|wasm file version/i,
    () => "The runtime's file does not fit this page. Load the page again without the cache; if that does not help, make the site again.",
  ],
  [
    /unloaded|terminated/i,
    () => "The model was unloaded. Load it again.",
  ],
];

const MEMORY =
  /cannot allocate|could not allocate|out of memory|failed to allocate|failed to create (?:context|the kv cache)|memory access out of bounds|Aborted\(OOM\)|bad_alloc|Array buffer allocation failed|maximum memory size/i;

/** True if the failure says that memory did not suffice. */
export function wantsMemory(error: unknown): boolean {
  return MEMORY.test(wholeText(error));
}

/**
 * Explains a failure.
 *
 * @param error Whatever was thrown.
 * @returns One or two short sentences for the user.
 */
export function explain(error: unknown): string {
  if (error instanceof TooLittleMemory || error instanceof DamagedFile || error instanceof ContextFull) {
    return error.message;
  }
  const text = wholeText(error);
  for (const [pattern, sentence] of RULES) {
    const match = pattern.exec(text);
    if (match) return sentence(match);
  }
  if (MEMORY.test(text)) {
    return "There is too little memory for this model. Close other tabs, choose a shorter context in the settings, or load one model only.";
  }
  if (error instanceof RuntimeFailure) {
    return `The runtime stopped: ${oneLine(error.message)}. Load the page again; if it happens again, the file may be one that llama.cpp does not read.`;
  }
  return error instanceof Error && error.message ? oneLine(error.message) : `Something failed: ${oneLine(String(error))}`;
}

function wholeText(error: unknown): string {
  if (error instanceof RuntimeFailure) return [error.message, ...error.log].join("\n");
  if (error instanceof Error) return `${error.name}: ${error.message}`;
  return String(error);
}

function oneLine(text: string): string {
  return text.replace(/\s+/g, " ").trim().slice(0, 300);
}

/** Logs what llama.cpp said, for whoever reports a failure. */
export function logFailure(error: unknown): void {
  if (error instanceof RuntimeFailure) console.warn(error.message, error.log.join("\n"));
}
