/** The current llama.cpp: knows every architecture, and computes on a GPU. */

import { Wllama } from "@wllama/wllama";

import type { Answer, Candidate, ChatMessage, CountedText, Engine, LoadOptions, OnPrompt, Sampling, Timing } from "./engine";
import { ContextFull, RuntimeFailure, isAbort } from "./errors";
import { RUNTIME_FILES, runtimeBuild } from "./runtime_build";
import { failure, logger } from "./runtime_log";
import { textOfTokens } from "./text_of_tokens";

/** One piece of a streamed answer, of either kind of completion. */
interface Chunk {
  choices?: { text?: string; delta?: { content?: string | null }; finish_reason?: string | null; logprobs?: unknown }[];
  timings?: { predicted_n: number; prompt_n: number; cache_n: number };
  prompt_progress?: { total: number; processed: number };
  usage?: { prompt_tokens: number; completion_tokens: number } | null;
}

/**
 * Tokens of a prompt between two looks at the page. Without a GPU a larger batch is no faster here, and the user can
 * stop only between batches.
 */
const BATCH_TOKENS = 64;

export class CurrentEngine implements Engine {
  readonly runtime = "current";

  private constructor(
    private readonly wllama: Wllama,
    private readonly log: string[],
    readonly loadSeconds: number,
    readonly startSeconds: number,
    readonly threads: number,
    readonly contextTokens: number,
  ) {}

  /** Starts a worker and loads a model into it. */
  static async open(file: Blob, options: LoadOptions): Promise<CurrentEngine> {
    const log: string[] = [];
    const started = performance.now();
    let readFrom = started;
    const wllama = new Wllama(
      { default: RUNTIME_FILES.default[0] ?? "" },
      { logger: logger(log, (text) => {
        // wllama says so between the start of the runtime and its reading of the model.
        if (text === "Loading model...") readFrom = performance.now();
      }) },
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
    return new CurrentEngine(
      wllama,
      log,
      (ready - started) / 1000,
      (readFrom - started) / 1000,
      wllama.getNumThreads(),
      wllama.getLoadedContextInfo().n_ctx,
    );
  }

  chat(
    messages: readonly ChatMessage[],
    sampling: Sampling,
    onText: (piece: string) => void,
    signal?: AbortSignal,
    onPrompt?: OnPrompt,
  ): Promise<Answer> {
    const request = { messages, ...samplingRequest(sampling), cache_prompt: true, return_progress: onPrompt !== undefined };
    return this.stream(request, onText, signal, onPrompt);
  }

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

  async next(prompt: string, count: number, signal?: AbortSignal): Promise<Candidate[]> {
    const result = await this.oneToken({ prompt, n_probs: count, logprobs: count, ...(signal ? { abortSignal: signal } : {}) });
    return candidates(result.choices?.[0]?.logprobs);
  }

  /** By an answer of one token: the runtime has no cheaper way to count. */
  async countTokens(text: string): Promise<number> {
    const result = await this.oneToken({ prompt: text, ...PLAIN_ANSWER });
    return result.usage?.prompt_tokens ?? 0;
  }

  textOfTokens(count: number): Promise<CountedText> {
    return textOfTokens(count, (text) => this.countTokens(text));
  }

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

  private async oneToken(request: object): Promise<Chunk> {
    const whole = { ...request, max_tokens: 1, temperature: 0, cache_prompt: true };
    return (await this.call(() => this.wllama.createCompletion(whole as never))) as Chunk;
  }

  private async stream(
    request: object,
    onText: (piece: string) => void,
    signal?: AbortSignal,
    onPrompt?: OnPrompt,
  ): Promise<Answer> {
    const { text, first, last, chunk, stopped } = await this.timedStream(request, onText, signal, onPrompt);
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
      ended: stopped ? "user" : !limited ? "stop" : last.tokens < (max_tokens ?? 0) ? "context" : "length",
    };
  }

  private async timedStream(
    request: object,
    onText: (piece: string) => void,
    signal?: AbortSignal,
    onPrompt?: OnPrompt,
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

function candidates(logprobs: unknown): Candidate[] {
  const first = (logprobs as { content?: { top_logprobs?: { id: number; token: string; logprob: number }[] }[] } | null)?.content?.[0];
  return (first?.top_logprobs ?? []).map(({ id, token, logprob }) => ({ token: id, text: token, probability: Math.exp(logprob) }));
}
