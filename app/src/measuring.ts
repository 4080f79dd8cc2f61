/**
 * Times the models of a site: rounds of fresh workers, and turns in the order A B B A, as docs/reference/speed.md says.
 *
 * In a round each model is loaded into a new worker; then one answers a prompt, the other twice, and the first again, so
 * that a device that is slow for some seconds slows both alike. The next round starts with the other model.
 */

import { Engine } from "./engine";
import { contextTokens, type MeasureSettings } from "./measure_settings";
import { measureMemory } from "./measured_memory";
import { checkMemory, neededBytes } from "./memory";
import { fetchModel } from "./model_files";
import { Progress } from "./progress";
import { chosenRuntime, whyLeft } from "./runtime_choice";
import { Samples, type Sample } from "./samples";
import type { ModelEntry, Role } from "./site";
import { inTurn } from "./statistics";
import type { Undisturbed } from "./undisturbed";

export interface Measured {
  samples: Sample[];
  /** Threads that the runtime used. */
  threads: number;
  /** Rounds that were finished. */
  rounds: number;
  notes: string[];
}

/** Values of a turn. */
const VALUES = 3;

/** Tokens of the answer that does not count. */
export const WARM_UP = { prompt: 16, newTokens: 4 };

export class Measuring {
  private readonly samples = new Samples();
  private readonly notes: string[] = [];
  private readonly files = new Map<Role, Blob>();
  private readonly prompts = new Map<string, string>();
  private readonly open = new Set<Engine>();
  private memory: Sample[] = [];
  private together = true;
  private threads = 0;
  /** Rounds that were finished. */
  private done = 0;

  constructor(
    private readonly models: readonly ModelEntry[],
    private readonly settings: MeasureSettings,
    private readonly progress: Progress,
    private readonly undisturbed: Undisturbed,
    private readonly signal: AbortSignal,
  ) {}

  /** Measures until all rounds are done or the signal stops it; fails if not one round was finished. */
  async run(): Promise<Measured> {
    // What is loaded answers no more: the turn that runs fails at once.
    this.signal.addEventListener("abort", () => void this.closeAll(), { once: true });
    try {
      await this.prepare();
      await this.runRounds();
    } catch (error) {
      if (!this.signal.aborted) throw error;
      if (this.done === 0) throw new DOMException("stopped before the first round was finished", "AbortError");
      this.notes.push(`stopped after ${this.done} of ${this.settings.rounds} rounds`);
    } finally {
      await this.closeAll();
    }
    return { samples: [...this.samples.list, ...this.memory], threads: this.threads, rounds: this.done, notes: this.notes };
  }

  private async runRounds(): Promise<void> {
    const { rounds, gpu } = this.settings;
    const runtime = chosenRuntime(gpu);
    let repeated = 0;
    while (this.done < rounds) {
      await this.undisturbed.visible(this.signal);
      this.progress.startRound(this.done, this.stepsBefore(this.done));
      await this.runRound(this.done);
      this.signal.throwIfAborted();
      if (chosenRuntime(gpu) !== runtime) throw new Error(`${whyLeft()} Figures of two builds cannot be compared: measure again.`);
      const hidden = this.undisturbed.takeHidden();
      if (hidden && repeated < rounds) {
        repeated++;
        this.samples.dropRound();
        continue;
      }
      if (hidden) this.notes.push(`the page was hidden during round ${this.done + 1}, and browsers slow down what is hidden`);
      this.samples.keepRound();
      this.done++;
    }
    if (repeated) this.notes.push(`rounds repeated because the page was hidden meanwhile: ${repeated}`);
  }

  /** Values that the rounds before one of this number have. */
  private stepsBefore(round: number): number {
    const turns = this.together ? 2 : 1;
    const each = 1 + VALUES * turns * this.settings.lengths.length;
    return this.models.length * (round * each + Math.min(round, this.settings.coldRounds));
  }

  /** Fetches the files, makes the prompts, measures memory, and finds out whether the models fit in memory together. */
  private async prepare(): Promise<void> {
    const context = contextTokens(this.settings);
    const needed = this.models.map((entry) => neededBytes(entry, context));
    this.models.forEach((_, index) => checkMemory(needed[index] ?? 0));
    this.together = this.models.length === 1 || fitTogether(needed);
    for (const entry of this.models) {
      const { file } = await fetchModel(entry, {
        signal: this.signal,
        onProgress: ({ loadedBytes, totalBytes }) => this.progress.fetching(entry, loadedBytes / totalBytes),
      });
      this.files.set(entry.role, file);
    }
    for (const entry of this.models) {
      this.progress.say(`Preparing ${entry.name}`);
      const engine = await this.start(this.file(entry));
      for (const length of [WARM_UP.prompt, ...this.settings.lengths]) {
        const { text, tokens } = await engine.textOfTokens(length);
        if (tokens !== length && length !== WARM_UP.prompt) this.notes.push(`the prompts of ${length} tokens have ${tokens} in ${entry.name}`);
        this.prompts.set(`${entry.role} ${length}`, text);
      }
      await this.finish(engine);
    }
    if (this.settings.memory) {
      const memory = await measureMemory(this.models, (entry) => this.answered(entry), this.progress, this.signal);
      this.memory = [...memory.bytes].map(([role, bytes]) => ({ role, metric: "peak_memory_bytes", setting: "", values: [[bytes]] }));
      this.notes.push(...memory.notes);
    } else this.notes.push("memory was not measured: the settings say so");
    this.notes.push(...this.loadNotes());
    const left = this.settings.gpu ? null : whyLeft();
    if (left) this.notes.push(left);
    this.progress.begin(this.settings.rounds, this.stepsBefore(this.settings.rounds));
    if (!this.together) {
      this.notes.push("both models do not fit in memory at once, so each answered alone, one after the other: their ratio is less certain");
    }
  }

  private loadNotes(): string[] {
    const notes = ["warm cache: the file is on the device already, and is loaded into a new worker"];
    if (this.settings.coldRounds > 0) {
      notes.unshift(
        "cold cache: the file is fetched again past every cache of the browser, checked, stored, and loaded into a new worker; server and network are part of it, and the caches of the operating system are not emptied",
      );
    }
    return notes;
  }

  /** A model that has answered the longest prompt, and how to be rid of it. */
  private async answered(entry: ModelEntry): Promise<() => Promise<void>> {
    const engine = await this.start(this.file(entry));
    await engine.time(this.prompt(entry, Math.max(...this.settings.lengths)), this.settings.newTokens);
    return () => this.finish(engine);
  }

  private async runRound(round: number): Promise<void> {
    const order = inTurn(this.models, round);
    if (round < this.settings.coldRounds) {
      for (const entry of order) {
        const { file, seconds } = await fetchModel(entry, { cache: "reload", signal: this.signal });
        const engine = await this.start(file);
        this.record(entry, "model_load_seconds", ", cold cache", seconds + engine.loadSeconds);
        await this.finish(engine);
      }
    }
    for (const group of this.together ? [order] : order.map((entry) => [entry])) {
      const engines = new Map<ModelEntry, Engine>();
      for (const entry of group) engines.set(entry, await this.loadWarm(entry));
      const turns = this.together ? [...group, ...inTurn(group, 1)] : group;
      for (const length of this.settings.lengths) {
        for (const entry of turns) await this.turn(entry, engines.get(entry), length);
      }
      for (const engine of engines.values()) await this.finish(engine);
    }
  }

  private async loadWarm(entry: ModelEntry): Promise<Engine> {
    const started = performance.now();
    const file = (await this.cachedFile(entry)) ?? this.file(entry);
    const seconds = (performance.now() - started) / 1000;
    const engine = await this.start(file);
    this.record(entry, "model_load_seconds", ", warm cache", seconds + engine.loadSeconds);
    await engine.time(this.prompt(entry, WARM_UP.prompt), WARM_UP.newTokens);
    return engine;
  }

  private async turn(entry: ModelEntry, engine: Engine | undefined, length: number): Promise<void> {
    if (!engine) return;
    this.signal.throwIfAborted();
    const found = await engine.time(this.prompt(entry, length), this.settings.newTokens);
    const setting = `, prompt ${length}`;
    this.record(entry, "time_to_first_token_seconds", setting, found.firstTokenSeconds);
    this.record(entry, "decode_tokens_per_second", setting, found.decodeTokensPerSecond);
    this.record(entry, "response_seconds", setting, found.responseSeconds);
  }

  private record(entry: ModelEntry, metric: Parameters<Samples["add"]>[1], setting: string, value: number): void {
    this.samples.add(entry.role, metric, setting, value);
    this.progress.step();
  }

  private async start(file: Blob): Promise<Engine> {
    this.signal.throwIfAborted();
    const options = { threads: this.settings.threads, contextTokens: contextTokens(this.settings), gpu: this.settings.gpu };
    const engine = await Engine.open(file, options);
    this.open.add(engine);
    this.threads = engine.threads;
    if (this.signal.aborted) await this.finish(engine);
    this.signal.throwIfAborted();
    return engine;
  }

  private async finish(engine: Engine): Promise<void> {
    this.open.delete(engine);
    await engine.close();
  }

  private async closeAll(): Promise<void> {
    await Promise.all([...this.open].map((engine) => this.finish(engine)));
  }

  /** The file as the browser's cache holds it; null where it has no cache. */
  private async cachedFile(entry: ModelEntry): Promise<Blob | null> {
    if (!("caches" in globalThis)) return null;
    const { file } = await fetchModel(entry, { signal: this.signal });
    return file;
  }

  private file(entry: ModelEntry): Blob {
    const file = this.files.get(entry.role);
    if (!file) throw new Error(`${entry.file} was not fetched`);
    return file;
  }

  private prompt(entry: ModelEntry, length: number): string {
    return this.prompts.get(`${entry.role} ${length}`) ?? "";
  }
}

function fitTogether(needed: readonly number[]): boolean {
  try {
    needed.forEach((bytes, index) => checkMemory(bytes, needed.slice(0, index).reduce((sum, more) => sum + more, 0)));
    return true;
  } catch {
    return false;
  }
}
