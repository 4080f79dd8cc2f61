/** The worker of the fast runtime: llama.cpp's own steps, one message each. */

import type {
  GlueMsg,
  GlueMsgDecodeRes,
  GlueMsgDetokenizeRes,
  GlueMsgGetLogitsRes,
  GlueMsgLoadRes,
  GlueMsgSamplingInitReq,
  GlueMsgSamplingSampleRes,
  GlueMsgTokenizeRes,
} from "wllama-fast/esm/glue/messages.js";
import { ProxyToWorker } from "wllama-fast/esm/worker.js";

import { isolated } from "./environment";
import type { LoadOptions } from "./engine";
import { FAST_FILES } from "./runtime_build";
import { failure, logger } from "./runtime_log";

/**
 * Tokens of a prompt between two looks at the page. A larger batch is no faster here, and the user can stop only
 * between batches.
 */
export const BATCH_TOKENS = 64;

/** Bytes of the file that are copied into the worker at once. */
const PIECE_BYTES = 8 * 2 ** 20;

/** What asks llama.cpp for a seed of the clock. */
const CLOCK_SEED = -1;

export interface Token {
  token: number;
  piece: Uint8Array;
}

export class FastWorker {
  private rejectAll: (reason: Error) => void = () => undefined;
  /** Rejects as soon as the worker is gone: what was asked then is never answered. */
  private readonly gone = new Promise<never>((_, reject) => (this.rejectAll = reject));

  private constructor(
    private readonly proxy: ProxyToWorker,
    private readonly log: string[],
    readonly threads: number,
  ) {
    this.gone.catch(() => undefined);
  }

  /**
   * Starts a worker and loads a model into it.
   *
   * @param seed Of everything that it samples; null for another one every time.
   * @param onRead Told when the runtime has started and reads the file.
   */
  static async start(file: Blob, options: LoadOptions, seed: number | null, onRead: () => void): Promise<[FastWorker, GlueMsgLoadRes]> {
    const log: string[] = [];
    const threads = isolated ? options.threads : 1;
    const wasm = threads > 1 ? FAST_FILES.multi : FAST_FILES.single;
    const proxy = new ProxyToWorker({ "wllama.wasm": new URL(wasm, document.baseURI).href }, threads, false, logger(log));
    const worker = new FastWorker(proxy, log, threads);
    try {
      const started = proxy.moduleInit([{ name: "model.gguf", blob: inPieces(file, onRead, options.onProgress) }]);
      if (proxy.worker) proxy.worker.onerror = (event) => worker.rejectAll(new Error(event.message || "the worker did not start"));
      await worker.orGone(started);
      await worker.orGone(proxy.wllamaStart());
      const loaded = await worker.ask<GlueMsgLoadRes>("load", {
        _name: "load_req",
        model_paths: ["models/model.gguf"],
        n_ctx_auto: false,
        use_mmap: true,
        use_mlock: true,
        n_gpu_layers: 0,
        // Zero and the clock's seed mean something else, and the runtime has 31 bits for others.
        seed: seed === null ? CLOCK_SEED : (seed % (2 ** 31 - 1)) + 1,
        n_ctx: options.contextTokens,
        n_batch: BATCH_TOKENS,
        n_threads: threads,
      });
      if (!loaded.success) throw failure(new Error("the model was not loaded"), log);
      return [worker, loaded];
    } catch (error) {
      worker.close();
      // The first line of an error says why; llama.cpp then repeats only that there was one.
      const reason = log.map((line) => /error loading model: (.+)/.exec(line)?.[1]).find(Boolean);
      throw failure(reason ?? error, log);
    }
  }

  async tokenize(text: string, special: boolean): Promise<number[]> {
    return (await this.ask<GlueMsgTokenizeRes>("tokenize", { _name: "tokn_req", text, special })).tokens;
  }

  async bytesOf(token: number): Promise<Uint8Array> {
    return (await this.ask<GlueMsgDetokenizeRes>("detokenize", { _name: "dtkn_req", tokens: [token] })).buffer;
  }

  /** Appends tokens to what the model has read; at most BATCH_TOKENS. */
  async decode(tokens: number[], skipLogits: boolean): Promise<void> {
    const found = await this.ask<GlueMsgDecodeRes>("decode", { _name: "deco_req", tokens, skip_logits: skipLogits });
    if (!found.success) throw failure(new Error(found.message || "llama.cpp did not decode"), this.log);
  }

  /** Forgets all but the first tokens that the model has read. */
  async keep(count: number): Promise<void> {
    if (count === 0) await this.ask("kv_clear", { _name: "kvcc_req" });
    else await this.ask("kv_remove", { _name: "kvcr_req", n_keep: count, n_discard: -1 });
  }

  async startSampling(request: Omit<GlueMsgSamplingInitReq, "_name">): Promise<void> {
    await this.ask("sampling_init", { _name: "sint_req", ...request });
  }

  async sample(): Promise<Token> {
    return this.ask<GlueMsgSamplingSampleRes>("sampling_sample", { _name: "ssam_req" });
  }

  /** Tells the sampler of a token, for its penalty on repetition. */
  async accept(token: number): Promise<void> {
    await this.ask("sampling_accept", { _name: "sacc_req", tokens: [token] });
  }

  async mostProbable(count: number): Promise<{ token: number; probability: number }[]> {
    const { tokens, probs } = await this.ask<GlueMsgGetLogitsRes>("get_logits", { _name: "glog_req", top_k: count });
    if (!probs.every(Number.isFinite)) throw failure(new Error("the model's logits are too large for probabilities"), this.log);
    return tokens.map((token, index) => ({ token, probability: probs[index] ?? 0 }));
  }

  close(): void {
    this.rejectAll(failure(new Error("the model was unloaded"), []));
    // Its threads are workers of this one, and end with it.
    this.proxy.worker?.terminate();
  }

  private async ask<T extends GlueMsg>(action: string, request: GlueMsg): Promise<T> {
    return this.orGone(this.proxy.wllamaAction<T>(action, request));
  }

  private async orGone<T>(asked: Promise<T>): Promise<T> {
    try {
      return await Promise.race([this.gone, asked]);
    } catch (error) {
      throw failure(error, this.log);
    }
  }
}

/** A copy of the Blob that is read in large pieces, and tells how far. */
function inPieces(file: Blob, onRead: () => void, onProgress?: (share: number) => void): Blob {
  const copy = new Blob([file]);
  let place = 0;
  copy.stream = () =>
    new ReadableStream<Uint8Array<ArrayBuffer>>({
      start: onRead,
      async pull(controller) {
        if (place >= file.size) return controller.close();
        const piece = new Uint8Array(await file.slice(place, place + PIECE_BYTES).arrayBuffer());
        place += piece.byteLength;
        controller.enqueue(piece);
        onProgress?.(place / file.size);
      },
    });
  return copy;
}
