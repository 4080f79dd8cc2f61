/** What llama.cpp says: its last lines say why a model does not load. */

import { RuntimeFailure } from "./errors";

const LOG_LINES = 40;

export interface Logger {
  debug: (...parts: unknown[]) => void;
  log: (...parts: unknown[]) => void;
  warn: (...parts: unknown[]) => void;
  error: (...parts: unknown[]) => void;
}

/** Keeps the last lines in a list. */
export function logger(lines: string[], onDebug: (text: unknown) => void = () => undefined): Logger {
  const add = (...parts: unknown[]): void => {
    lines.push(parts.map(String).join(" ").trim());
    if (lines.length > LOG_LINES) lines.shift();
  };
  return { debug: (first) => onDebug(first), log: add, warn: add, error: add };
}

/** A failure with the lines that came before it. */
export function failure(error: unknown, lines: readonly string[]): RuntimeFailure {
  const message = error instanceof Error ? error.message : String(error);
  return new RuntimeFailure(message, [...lines]);
}
