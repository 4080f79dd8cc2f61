/** The fast llama.cpp: an older one, whose WebAssembly has kernels for 128-bit vectors. */

import { ChatPrompt } from "./chat_prompt";
import type { Answer, Candidate, ChatMessage, CountedText, Engine, LoadOptions, OnPrompt, Sampling, Timing } from "./engine";
import { ContextFull, isAbort } from "./errors";
import { BATCH_TOKENS, FastWorker, type Token } from "./fast_worker";
import { failure } from "./runtime_log";
import { TextStream } from "./text_stream";
import { textOfTokens } from "./text_of_tokens";

/** What the model's file says of its tokens. */
interface Special {
  bos: number;
  eos: number;
  startsWithBos: boolean;
  endsWithEos: boolean;
  /** Tokens that end an answer. */
  ends: ReadonlySet<number>;
}

const GREEDY: Sampling = { temperature: 0, topP: 1, topK: 1, minP: 0, repetitionPenalty: 1, maxNewTokens: 1, seed: null };

/** Tokens that the penalty on repetition looks back on: the same in llama.cpp's server. */
const PENALTY_TOKENS = 64;

export class FastEngine implements Engine {
  readonly runtime = "fast";
  /** The tokens that the model has read. */
  private read: number[] = [];
  private seed: number | null = null;
  private last: Promise<unknown> = Promise.resolve();
  private readonly control = new Map<number, boolean>();
  private closed = false;
  /** True where the model has to be loaded again, because that failed the last time. */
  private lost = false;

  private constructor(
    private readonly file: Blob,
    private readonly options: LoadOptions,
    private worker: FastWorker,
    private readonly special: Special,
    private readonly prompt: ChatPrompt,
    readonly loadSeconds: number,
    readonly startSeconds: number,
  ) {}

  static async open(file: Blob, options: LoadOptions): Promise<FastEngine> {
    const started = performance.now();
    let readFrom = started;
    const [worker, loaded] = await FastWorker.start(file, options, null, () => (readFrom = performance.now()));
    try {
      const special = {
        bos: loaded.token_bos,
        eos: loaded.token_eos,
        startsWithBos: loaded.add_bos_token,
        endsWithEos: loaded.add_eos_token,
        ends: new Set(loaded.list_tokens_eog),
      };
      const text = async (token: number): Promise<string> => (token < 0 ? "" : new TextDecoder().decode(await worker.bytesOf(token)));
      const template = loaded.metadata_val[loaded.metadata_key.indexOf("tokenizer.chat_template")];
      const prompt = new ChatPrompt(template, { bos: await text(special.bos), eos: await text(special.eos) });
      const seconds = (performance.now() - started) / 1000;
      return new FastEngine(file, options, worker, special, prompt, seconds, (readFrom - started) / 1000);
    } catch (error) {
      worker.close();
      throw failure(error, []);
    }
  }

  get threads(): number {
    return this.worker.threads;
  }

  get contextTokens(): number {
    return this.options.contextTokens;
  }

  chat(
    messages: readonly ChatMessage[],
    sampling: Sampling,
    onText: (piece: string) => void,
    signal?: AbortSignal,
    onPrompt?: OnPrompt,
  ): Promise<Answer> {
    // The server in the current runtime also leaves out the space before an answer.
    const text = new TextStream([], onText, true);
    return this.inTurn(() => this.answer(() => this.prompt.render(messages), sampling, text, signal, onPrompt));
  }

  complete(
    prompt: string,
    sampling: Sampling,
    onText: (piece: string) => void,
    signal?: AbortSignal,
    stop: readonly string[] = [],
  ): Promise<Answer> {
    return this.inTurn(() => this.answer(() => prompt, sampling, new TextStream(stop, onText), signal));
  }

  next(prompt: string, count: number, signal?: AbortSignal): Promise<Candidate[]> {
    return this.inTurn(async () => {
      await this.readPrompt(await this.tokensOf(prompt), signal);
      const found: Candidate[] = [];
      for (const { token, probability } of await this.worker.mostProbable(count)) {
        found.push({ token, probability, text: new TextDecoder().decode(await this.worker.bytesOf(token)) });
      }
      return found;
    });
  }

  async countTokens(text: string): Promise<number> {
    return (await this.tokensOf(text)).length;
  }

  textOfTokens(count: number): Promise<CountedText> {
    return textOfTokens(count, (text) => this.countTokens(text));
  }

  time(prompt: string, newTokens: number): Promise<Timing> {
    return this.inTurn(async () => {
      const started = performance.now();
      const clock = (): number => (performance.now() - started) / 1000;
      const tokens = await this.tokensOf(prompt);
      await this.startSampling(GREEDY, tokens);
      await this.keep(0);
      await this.readPrompt(tokens);
      let { token } = await this.worker.sample();
      const firstTokenSeconds = clock();
      for (let count = 0; count < newTokens; count++) {
        await this.decode([token], false);
        ({ token } = await this.worker.sample());
      }
      const responseSeconds = clock();
      return { firstTokenSeconds, decodeTokensPerSecond: newTokens / (responseSeconds - firstTokenSeconds), responseSeconds };
    });
  }

  async close(): Promise<void> {
    this.closed = true;
    this.worker.close();
  }

  /** One thing after another: the worker has one conversation. */
  private inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.last.then(work, work);
    this.last = done.catch(() => undefined);
    return done;
  }

  private async answer(
    prompt: () => string,
    sampling: Sampling,
    text: TextStream,
    signal?: AbortSignal,
    onPrompt?: OnPrompt,
  ): Promise<Answer> {
    const started = performance.now();
    const clock = (): number => (performance.now() - started) / 1000;
    let promptTokens = 0;
    let newTokens = 0;
    let first: number | null = null;
    let lastSeconds = 0;
    let ended: Answer["ended"] = "length";
    try {
      await this.useSeed(sampling);
      const tokens = await this.tokensOf(prompt());
      promptTokens = tokens.length;
      await this.readPrompt(tokens, signal, onPrompt);
      await this.startSampling(sampling, tokens);
      while (newTokens < sampling.maxNewTokens) {
        const found = await this.worker.sample();
        newTokens++;
        lastSeconds = clock();
        first ??= lastSeconds;
        signal?.throwIfAborted();
        const isEnd = this.special.ends.has(found.token);
        if (!isEnd && !(await this.isControl(found))) text.add(found.piece);
        if (isEnd || text.stopped) ended = "stop";
        else if (this.read.length + 1 >= this.contextTokens) ended = "context";
        if (ended !== "length" || newTokens === sampling.maxNewTokens) break;
        if (sampling.repetitionPenalty !== 1) await this.worker.accept(found.token);
        await this.decode([found.token], false);
      }
    } catch (error) {
      if (error instanceof ContextFull || !isAbort(error)) throw error instanceof Error ? error : failure(error, []);
      ended = "user";
    }
    text.end();
    const decoded = newTokens - 1;
    return {
      text: text.text,
      promptTokens,
      newTokens,
      firstTokenSeconds: first ?? clock(),
      decodeTokensPerSecond: first !== null && decoded > 0 ? decoded / (lastSeconds - first) : null,
      ended,
    };
  }

  private async tokensOf(text: string): Promise<number[]> {
    const tokens = await this.worker.tokenize(text, true);
    const { bos, eos, startsWithBos, endsWithEos } = this.special;
    if (startsWithBos && tokens[0] !== bos) tokens.unshift(bos);
    if (endsWithEos) tokens.push(eos);
    return tokens;
  }

  /** Reads what the model has not read yet, and leaves it ready to say what comes next. */
  private async readPrompt(tokens: number[], signal?: AbortSignal, onPrompt?: OnPrompt): Promise<void> {
    if (tokens.length >= this.contextTokens) throw new ContextFull(this.contextTokens);
    let same = 0;
    // The last token is read again in any case: what comes after it is asked.
    while (same < tokens.length - 1 && tokens[same] === this.read[same]) same++;
    await this.keep(same);
    while (this.read.length < tokens.length) {
      signal?.throwIfAborted();
      const from = this.read.length;
      const batch = tokens.slice(from, from + BATCH_TOKENS);
      await this.decode(batch, from + batch.length < tokens.length);
      onPrompt?.(this.read.length, tokens.length);
    }
  }

  private async keep(count: number): Promise<void> {
    if (count > 0 && count === this.read.length) return;
    await this.worker.keep(count);
    this.read = this.read.slice(0, count);
  }

  private async decode(tokens: number[], skipLogits: boolean): Promise<void> {
    const before = this.read;
    this.read = []; // what a failure leaves behind is not known
    await this.worker.decode(tokens, skipLogits);
    this.read = [...before, ...tokens];
  }

  private startSampling(sampling: Sampling, before: readonly number[]): Promise<void> {
    const greedy = sampling.temperature <= 0;
    return this.worker.startSampling({
      temp: greedy ? 0 : sampling.temperature,
      top_p: greedy ? 1 : sampling.topP,
      top_k: greedy ? 1 : sampling.topK,
      min_p: greedy ? 0 : sampling.minP,
      penalty_repeat: sampling.repetitionPenalty,
      penalty_last_n: PENALTY_TOKENS,
      tokens: before.slice(-PENALTY_TOKENS),
    });
  }

  /** The runtime takes a seed only when it loads a model: another one loads it again. */
  private async useSeed({ temperature, seed }: Sampling): Promise<void> {
    if (!this.lost && (temperature <= 0 || seed === this.seed)) return;
    this.lost = true; // until the model is loaded again
    this.worker.close();
    this.read = [];
    const { onProgress: _, ...options } = this.options;
    [this.worker] = await FastWorker.start(this.file, options, seed, () => undefined);
    this.lost = false;
    this.seed = seed;
    if (this.closed) this.worker.close();
  }

  /** True for a token that is not text, such as a mark of the chat template, which the current runtime hides as well. */
  private async isControl({ token, piece }: Token): Promise<boolean> {
    const text = new TextDecoder().decode(piece);
    if (!/^[<[].+[>\]]$/.test(text)) return false;
    let known = this.control.get(token);
    if (known === undefined) {
      const [special, plain] = [await this.worker.tokenize(text, true), await this.worker.tokenize(text, false)];
      known = special.includes(token) && !plain.includes(token);
      this.control.set(token, known);
    }
    return known;
  }
}
