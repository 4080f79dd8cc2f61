/** llama.cpp in a worker of its own, one model and one conversation at a time: what both runtimes offer. */

import { isAbort, logFailure } from "./errors";
import type { RuntimeName } from "./runtime_build";
import { chosenRuntime, leaveFastRuntime } from "./runtime_choice";
import type { CountedText } from "./text_of_tokens";

export type { CountedText } from "./text_of_tokens";

export interface LoadOptions {
  threads: number;
  contextTokens: number;
  gpu: boolean;
  /** Told the share of the file that the runtime has read, 0 to 1, where it reads the file piece by piece. */
  onProgress?: (share: number) => void;
}

export interface ChatMessage {
  role: "system" | "user" | "assistant";
  content: string;
}

export interface Sampling {
  temperature: number;
  topP: number;
  topK: number;
  minP: number;
  repetitionPenalty: number;
  maxNewTokens: number;
  /** null: another one every time. */
  seed: number | null;
}

export interface Answer {
  text: string;
  promptTokens: number;
  newTokens: number;
  firstTokenSeconds: number;
  /** null if there are fewer than two tokens. */
  decodeTokensPerSecond: number | null;
  /** By itself, at the limit of new tokens, at the end of the context, or by the user. */
  ended: "stop" | "length" | "context" | "user";
}

export interface Timing {
  firstTokenSeconds: number;
  decodeTokensPerSecond: number;
  responseSeconds: number;
}

/** A token that may come next. */
export interface Candidate {
  token: number;
  text: string;
  probability: number;
}

/** Told how many tokens of the prompt have been read, and of how many. */
export type OnPrompt = (read: number, all: number) => void;

export interface Engine {
  readonly runtime: RuntimeName;
  /** From the Blob to a model that answers, the start of the runtime included. */
  readonly loadSeconds: number;
  /** The part of it in which the runtime started, before it read the model. */
  readonly startSeconds: number;
  readonly threads: number;
  readonly contextTokens: number;

  /** Answers the last message of a conversation, by the model's own chat template. */
  chat(
    messages: readonly ChatMessage[],
    sampling: Sampling,
    onText: (piece: string) => void,
    signal?: AbortSignal,
    onPrompt?: OnPrompt,
  ): Promise<Answer>;

  /** Continues a text. */
  complete(
    prompt: string,
    sampling: Sampling,
    onText: (piece: string) => void,
    signal?: AbortSignal,
    stop?: readonly string[],
  ): Promise<Answer>;

  /** The most probable next tokens, best first. */
  next(prompt: string, count: number, signal?: AbortSignal): Promise<Candidate[]>;

  /** The number of tokens of a text, the one that starts every text included. */
  countTokens(text: string): Promise<number>;

  /** Makes a text of this many tokens, or of one fewer where no text has exactly as many. */
  textOfTokens(count: number): Promise<CountedText>;

  /**
   * Times one answer by the page's clock: greedy, nothing cached, and on to the last token.
   *
   * @param prompt As text: `textOfTokens` makes one of a known length.
   * @param newTokens Tokens that are decoded after the first new one.
   */
  time(prompt: string, newTokens: number): Promise<Timing>;

  close(): Promise<void>;
}

export const Engine = {
  /** Starts a worker of the page's runtime and loads a model into it. */
  async open(file: Blob, options: LoadOptions): Promise<Engine> {
    if (chosenRuntime(options.gpu) === "current") return openCurrent(file, options);
    let reason: unknown;
    try {
      const { FastEngine } = await import("./fast_engine");
      return await FastEngine.open(file, options);
    } catch (error) {
      if (isAbort(error)) throw error;
      reason = error;
    }
    // What neither runtime loads says nothing against the fast one: then the failure of the current one is thrown.
    const engine = await openCurrent(file, options);
    logFailure(reason);
    leaveFastRuntime(reason instanceof Error ? reason.message : String(reason));
    return engine;
  },
};

async function openCurrent(file: Blob, options: LoadOptions): Promise<Engine> {
  const { CurrentEngine } = await import("./current_engine");
  return CurrentEngine.open(file, options);
}
