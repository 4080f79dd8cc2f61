/** The next words of a text: the most probable next tokens, each continued to the end of its word. */

import type { Candidate, Engine, Sampling } from "./engine";

export const MOST_WORDS = 3;

export interface Word {
  /** What is appended to the text. */
  addition: string;
  /** The whole word: with the letters that are typed already, if it continues them. */
  word: string;
  probability: number;
  /** Runs of the model for this word alone. */
  passes: number;
}

const GREEDY: Sampling = { temperature: 0, topP: 1, topK: 1, minP: 0, repetitionPenalty: 1, maxNewTokens: 6, seed: null };

/** Tokens that are looked at to find three words: some are special, or no words. */
const LOOKED_AT = 24;

/** What ends a word. */
const STOPS = [" ", "\n", "\t", ".", ",", ";", ":", "!", "?", '"', "(", ")", "[", "]", "<", "…", "—", "–", "/"];

/**
 * Finds the next words, best first.
 *
 * @param text What has been typed.
 * @param onWord Told each word as soon as it is known.
 */
export async function nextWords(engine: Engine, text: string, onWord: (word: Word) => void, signal: AbortSignal): Promise<void> {
  // Most tokenizers put the space before a word into its token.
  const prompt = text.trimEnd();
  const spaced = prompt.length < text.length;
  const found = words(await engine.next(prompt, LOOKED_AT, signal), spaced);
  for (const { text: start, probability } of found) {
    signal.throwIfAborted();
    const rest = await engine.complete(prompt + start, GREEDY, () => undefined, signal, STOPS);
    signal.throwIfAborted();
    const addition = (spaced ? start.trimStart() : start) + rest.text.trimEnd();
    const typed = /^\s/.test(start) ? "" : (/\S*$/.exec(prompt)?.[0] ?? "");
    onWord({ addition, word: typed + addition.trim(), probability, passes: Math.max(rest.newTokens, 1) });
  }
}

/** The candidates that begin or continue a word. After a space, only those that begin one. */
export function words(candidates: readonly Candidate[], spaced: boolean): Candidate[] {
  const seen = new Set<string>();
  const fitting = candidates.filter(({ text }) => {
    const key = text.trim().toLowerCase();
    const isWord = /[\p{L}\p{N}]/u.test(text) && !text.includes("\ufffd") && !/^<.*>$/.test(text);
    if (!isWord || (spaced && !/^\s/.test(text)) || seen.has(key)) return false;
    seen.add(key);
    return true;
  });
  return fitting.slice(0, MOST_WORDS);
}
