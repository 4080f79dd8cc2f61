/** llama.cpp in a worker of its own: one model, one conversation at a time. */

import { Wllama, type WllamaLogger } from "@wllama/wllama";

import { ContextFull, RuntimeFailure, isAbort } from "./errors";
import { RUNTIME_FILES, runtimeBuild } from "./runtime_build";

export type { ModelEntry } from "./site";

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
  totalSeconds: number;
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

/** A text and the number of its tokens, the one that starts every text included. */
export interface CountedText {
  text: string;
  tokens: number;
}

/** One piece of a streamed answer, of either kind of completion. */
interface Chunk {
  choices?: { text?: string; delta?: { content?: string | null }; finish_reason?: string | null; logprobs?: unknown }[];
  timings?: { predicted_n: number; prompt_n: number; cache_n: number };
  prompt_progress?: { total: number; processed: number };
  usage?: { prompt_tokens: number; completion_tokens: number } | null;
}

const LOG_LINES = 40;

/**
 * Tokens of a prompt between two looks at the page. Without a GPU a larger batch is no faster here, and the user can
 * stop only between batches.
 */
const BATCH_TOKENS = 64;

export class Engine {
  private constructor(
    private readonly wllama: Wllama,
    private readonly log: string[],
    /** From the Blob to a model that answers, the start of the runtime included. */
    readonly loadSeconds: number,
    /** The part of it in which the runtime started, before it read the model. */
    readonly startSeconds: number,
    readonly threads: number,
    readonly contextTokens: number,
  ) {}

  /** Starts a worker and loads a model into it. */
  static async open(file: Blob, options: LoadOptions): Promise<Engine> {
    const log: string[] = [];
    const started = performance.now();
    let readFrom = started;
    const wllama = new Wllama(
      { default: RUNTIME_FILES.default[0] ?? "" },
      { logger: logger(log, () => (readFrom = performance.now())) },
    );
    const [wasm = "", worker = ""] = RUNTIME_FILES.compat;
    // Local files, so that nothing is loaded from elsewhere. Firefox takes them where it lacks 64-bit memory.
    wllama.setCompat({ wasm, worker: new URL(worker, document.baseURI).href }, runtimeBuild() === "compat" ? "firefox_safari" : "safari");
    try {
      await wllama.loadModel([watched(file, options.onProgress)], {
        n_ctx: options.contextTokens,
        n_threads: options.threads,
        n_gpu_layers: options.gpu ? 99999 : 0,
        n_parallel: 1,
        ...(options.gpu ? {} : { n_batch: BATCH_TOKENS, n_ubatch: BATCH_TOKENS }),
        jinja: true,
        // The answer as the model writes it: no call of a tool and no train of thought is taken out.
        skip_chat_parsing: true,
        reasoning_format: "none",
      });
      // wllama passes this on, but does not look at it.
      const { success } = wllama.getLoadedContextInfo() as { success?: boolean };
      if (success !== true) throw new Error("the model was not loaded");
    } catch (error) {
      await wllama.exit().catch(() => undefined);
      throw failure(error, log);
    }
    const ready = performance.now();
    return new Engine(
      wllama,
      log,
      (ready - started) / 1000,
      (readFrom - started) / 1000,
      wllama.getNumThreads(),
      wllama.getLoadedContextInfo().n_ctx,
    );
  }

  /**
   * Answers the last message of a conversation, by the model's own chat template.
   *
   * @param onPrompt Told how many tokens of the prompt have been read, and of how many.
   */
  chat(
    messages: readonly ChatMessage[],
    sampling: Sampling,
    onText: (piece: string) => void,
    signal?: AbortSignal,
    onPrompt?: (read: number, all: number) => void,
  ): Promise<Answer> {
    const request = { messages, ...samplingRequest(sampling), cache_prompt: true, return_progress: onPrompt !== undefined };
    return this.stream(request, onText, signal, onPrompt);
  }

  /** Continues a text. */
  complete(
    prompt: string,
    sampling: Sampling,
    onText: (piece: string) => void,
    signal?: AbortSignal,
    stop: readonly string[] = [],
  ): Promise<Answer> {
    const request = { prompt, ...samplingRequest(sampling), cache_prompt: true, ...(stop.length ? { stop } : {}) };
    return this.stream(request, onText, signal);
  }

  /** The most probable next tokens, best first. */
  async next(prompt: string, count: number, signal?: AbortSignal): Promise<Candidate[]> {
    const result = await this.oneToken({ prompt, n_probs: count, logprobs: count, ...(signal ? { abortSignal: signal } : {}) });
    return candidates(result.choices?.[0]?.logprobs);
  }

  /** The number of tokens of a text, the one that starts every text included. The runtime has no cheaper way to count. */
  async countTokens(text: string): Promise<number> {
    const result = await this.oneToken({ prompt: text, ...PLAIN_ANSWER });
    return result.usage?.prompt_tokens ?? 0;
  }

  /** Makes a text of this many tokens, or of one fewer where no text has exactly as many. */
  async textOfTokens(count: number): Promise<CountedText> {
    let made: CountedText = { text: "", tokens: 0 };
    let words = 0;
    let step = Math.max(1, Math.floor(count / 2));
    while (made.tokens < count) {
      const text = made.text + sentence(words, step);
      const tokens = await this.countTokens(text).catch((error: unknown) => {
        if (error instanceof ContextFull) return Infinity;
        throw error;
      });
      if (tokens <= count) {
        made = { text, tokens };
        words += step;
        step = Math.max(1, Math.floor(((count - tokens) * words) / Math.max(tokens, 1)));
      } else if (step > 1) {
        step = Math.floor(step / 2);
      } else {
        return this.filledUp(made, count);
      }
    }
    return made;
  }

  /**
   * Times one answer by the page's clock: greedy, nothing cached, and on to the last token.
   *
   * @param prompt As text: the runtime takes no tokens. `textOfTokens` makes one of a known length.
   * @param newTokens Tokens that are decoded after the first new one.
   */
  async time(prompt: string, newTokens: number): Promise<Timing> {
    const request = { prompt, max_tokens: newTokens + 1, temperature: 0, cache_prompt: false, ignore_eos: true, ...PLAIN_ANSWER };
    const { first, last, clock } = await this.timedStream(request, () => undefined);
    if (last.tokens !== newTokens + 1) {
      throw new RuntimeFailure(`the runtime decoded ${last.tokens} tokens instead of ${newTokens + 1}`, this.log);
    }
    const decode = (last.tokens - first.tokens) / (last.seconds - first.seconds);
    // A first token that ends within a letter comes with the next one: take that one's time off again.
    const firstTokenSeconds = first.seconds - (first.tokens - 1) / decode;
    return { firstTokenSeconds, decodeTokensPerSecond: decode, responseSeconds: clock };
  }

  async close(): Promise<void> {
    await this.wllama.exit();
  }

  /** Adds single tokens to a text to which another word would add too many. */
  private async filledUp(made: CountedText, count: number): Promise<CountedText> {
    for (let tries = 0; made.tokens < count && tries < 2; tries++) {
      for (const piece of FILLERS) {
        const text = made.text + piece;
        const tokens = await this.countTokens(text);
        if (tokens > made.tokens && tokens <= count) {
          made = { text, tokens };
          tries = 0;
          break;
        }
      }
    }
    return made;
  }

  private async oneToken(request: object): Promise<Chunk> {
    const whole = { ...request, max_tokens: 1, temperature: 0, cache_prompt: true };
    return (await this.call(() => this.wllama.createCompletion(whole as never))) as Chunk;
  }

  private async stream(
    request: object,
    onText: (piece: string) => void,
    signal?: AbortSignal,
    onPrompt?: (read: number, all: number) => void,
  ): Promise<Answer> {
    const { text, first, last, clock, chunk, stopped } = await this.timedStream(request, onText, signal, onPrompt);
    const decoded = last.tokens - first.tokens;
    const usage = chunk?.usage;
    const limited = chunk?.choices?.[0]?.finish_reason === "length";
    const { max_tokens } = request as { max_tokens?: number };
    const timings = chunk?.timings;
    return {
      text,
      promptTokens: usage?.prompt_tokens ?? (timings ? timings.prompt_n + timings.cache_n : 0),
      newTokens: last.tokens,
      firstTokenSeconds: first.seconds,
      decodeTokensPerSecond: decoded > 0 ? decoded / (last.seconds - first.seconds) : null,
      totalSeconds: clock,
      ended: stopped ? "user" : !limited ? "stop" : last.tokens < (max_tokens ?? 0) ? "context" : "length",
    };
  }

  private async timedStream(
    request: object,
    onText: (piece: string) => void,
    signal?: AbortSignal,
    onPrompt?: (read: number, all: number) => void,
  ) {
    const started = performance.now();
    const clock = (): number => (performance.now() - started) / 1000;
    let first: { seconds: number; tokens: number } | null = null;
    let last = { seconds: 0, tokens: 0 };
    let text = "";
    let chunk: Chunk | null = null;
    let stopped = false;
    const onData = (data: Chunk): void => {
      const tokens = data.timings?.predicted_n ?? last.tokens;
      if (tokens > last.tokens) {
        last = { seconds: clock(), tokens };
        first ??= last;
      }
      if (data.prompt_progress) onPrompt?.(data.prompt_progress.processed, data.prompt_progress.total);
      const piece = data.choices?.[0]?.delta?.content ?? data.choices?.[0]?.text ?? "";
      if (piece) {
        text += piece;
        onText(piece);
      }
      chunk = { ...chunk, ...data, choices: data.choices?.length ? data.choices : (chunk?.choices ?? []) };
    };
    const options = {
      ...request,
      stream: true as const,
      timings_per_token: true,
      stream_options: { include_usage: true },
      onData,
      ...(signal ? { abortSignal: signal } : {}),
    };
    try {
      if ("messages" in request) await this.call(() => this.wllama.createChatCompletion(options as never));
      else await this.call(() => this.wllama.createCompletion(options as never));
    } catch (error) {
      if (!isAbort(error)) throw error;
      stopped = true;
    }
    first ??= { seconds: clock(), tokens: last.tokens };
    return { text, first: first as { seconds: number; tokens: number }, last, clock: clock(), chunk: chunk as Chunk | null, stopped };
  }

  private async call<T>(action: () => Promise<T>): Promise<T> {
    this.log.length = 0;
    try {
      return await action();
    } catch (error) {
      if (isAbort(error)) throw error;
      if (error instanceof Error && /exceeds? the (?:available )?context|context (?:size|length)|kv.?cache is full/i.test(error.message)) {
        throw new ContextFull(this.contextTokens);
      }
      throw failure(error, this.log);
    }
  }
}

/**
 * Makes an answer of one letter again and again. Which token is decoded changes no time, and the runtime fails at bytes
 * that are no text, which random weights decode.
 */
const PLAIN_ANSWER = { logit_bias: [["a", 10_000]] } as const;

const WORDS = "the old house stood by a small river and every morning its windows caught the light of the sun".split(" ");

const FILLERS = [".", " a", ",", "s", "1", "x"];

/** Words of a text that goes on and on, from one position of it to another. */
function sentence(from: number, count: number): string {
  return Array.from({ length: count }, (_, index) => ` ${WORDS[(from + index) % WORDS.length]}`).join("");
}

function samplingRequest(sampling: Sampling): object {
  return {
    temperature: sampling.temperature,
    top_p: sampling.topP,
    top_k: sampling.topK,
    min_p: sampling.minP,
    repeat_penalty: sampling.repetitionPenalty,
    max_tokens: sampling.maxNewTokens,
    // -1 asks the runtime for a random seed.
    seed: sampling.seed ?? -1,
  };
}

/** A copy of the Blob that tells how far it has been read. */
function watched(file: Blob, onProgress?: (share: number) => void): Blob {
  if (!onProgress) return file;
  const copy = new Blob([file]);
  let most = 0;
  copy.slice = (start, end, type) => {
    const upTo = Math.min(end ?? file.size, file.size);
    if (upTo > most) {
      most = upTo;
      onProgress(most / file.size);
    }
    return file.slice(start, end, type);
  };
  return copy;
}

/** Keeps llama.cpp's last warnings: they say why a model does not load. */
function logger(log: string[], onRead: () => void): WllamaLogger {
  const add = (...parts: unknown[]): void => {
    log.push(parts.map(String).join(" ").trim());
    if (log.length > LOG_LINES) log.shift();
  };
  const debug = (...parts: unknown[]): void => {
    // wllama says so between the start of the runtime and its reading of the model.
    if (parts[0] === "Loading model...") onRead();
  };
  return { debug, log: add, warn: add, error: add };
}

function failure(error: unknown, log: readonly string[]): RuntimeFailure {
  const message = error instanceof Error ? error.message : String(error);
  return new RuntimeFailure(message, [...log]);
}

function candidates(logprobs: unknown): Candidate[] {
  const first = (logprobs as { content?: { top_logprobs?: { id: number; token: string; logprob: number }[] }[] } | null)?.content?.[0];
  return (first?.top_logprobs ?? []).map(({ id, token, logprob }) => ({ token: id, text: token, probability: Math.exp(logprob) }));
}
