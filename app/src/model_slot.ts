/** A model of the site on its way from the server to an engine that answers. */

import { Engine } from "./engine";
import { TooLittleMemory, explain, isAbort, logFailure, wantsMemory } from "./errors";
import { checkMemory, neededBytes } from "./memory";
import { chosenRuntime } from "./runtime_choice";
import { fetchModel } from "./model_files";
import { contextOf, threadsOf, type Settings } from "./settings";
import type { ModelEntry } from "./site";

export type SlotState =
  | { kind: "idle" }
  | { kind: "fetching"; share: number; fromCache: boolean }
  | { kind: "starting"; share: number }
  | { kind: "ready"; loadSeconds: number; threads: number }
  | { kind: "failed"; message: string };

export class ModelSlot {
  state: SlotState = { kind: "idle" };
  private engine: Engine | null = null;
  private loading: Promise<Engine> | null = null;
  private controller = new AbortController();
  private loadedWith = "";

  constructor(
    readonly entry: ModelEntry,
    private readonly onChange: (slot: ModelSlot) => void,
  ) {}

  /** Bytes that the loaded model takes. */
  usedBytes(settings: Settings): number {
    return this.engine ? neededBytes(this.entry, contextOf(this.entry, settings)) : 0;
  }

  /** The engine, loaded as the settings say. Asking twice loads once. */
  async load(settings: Settings, otherBytes: number): Promise<Engine> {
    const wanted = JSON.stringify([threadsOf(settings), contextOf(this.entry, settings), settings.gpu, chosenRuntime(settings.gpu)]);
    if (this.loadedWith !== wanted) await this.unload();
    this.loadedWith = wanted;
    if (this.engine) return this.engine;
    this.loading ??= this.open(settings, otherBytes).finally(() => (this.loading = null));
    return this.loading;
  }

  async unload(): Promise<void> {
    this.controller.abort();
    this.controller = new AbortController();
    await this.loading?.catch(() => undefined);
    await this.engine?.close();
    this.engine = null;
    this.loadedWith = "";
    this.change({ kind: "idle" });
  }

  private async open(settings: Settings, otherBytes: number): Promise<Engine> {
    const { signal } = this.controller;
    const contextTokens = contextOf(this.entry, settings);
    const needed = neededBytes(this.entry, contextTokens);
    try {
      checkMemory(needed, otherBytes);
      this.change({ kind: "fetching", share: 0, fromCache: true });
      const { file } = await fetchModel(this.entry, {
        signal,
        onProgress: ({ loadedBytes, totalBytes, fromCache }) =>
          this.change({ kind: "fetching", share: loadedBytes / totalBytes, fromCache }),
      });
      this.change({ kind: "starting", share: 0 });
      const engine = await Engine.open(file, {
        threads: threadsOf(settings),
        contextTokens,
        gpu: settings.gpu,
        onProgress: (share) => this.change({ kind: "starting", share }),
      });
      if (signal.aborted) {
        await engine.close();
        signal.throwIfAborted();
      }
      this.engine = engine;
      this.change({ kind: "ready", loadSeconds: engine.loadSeconds, threads: engine.threads });
      return engine;
    } catch (error) {
      if (isAbort(error)) {
        this.change({ kind: "idle" });
        throw error;
      }
      logFailure(error);
      const failure = wantsMemory(error) ? new TooLittleMemory(needed) : error;
      this.change({ kind: "failed", message: explain(failure) });
      throw failure;
    }
  }

  private change(state: SlotState): void {
    this.state = state;
    this.onChange(this);
  }
}
