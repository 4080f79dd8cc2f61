/** What the user chose, kept on this device alone. */

import { defaultThreads, mostThreads } from "./environment";
import type { Sampling } from "./engine";
import type { ModelEntry, Role } from "./site";

export type Shown = Role | "both";

export interface Settings {
  /** null: as many as suit the device. */
  threads: number | null;
  contextTokens: number;
  gpu: boolean;
  system: string;
  /** null: as the model's generation config says. */
  temperature: number | null;
  maxNewTokens: number;
  /** null: another one every time. */
  seed: number | null;
  shown: Shown;
  marks: boolean;
}

export const DEFAULTS: Settings = {
  threads: null,
  contextTokens: 2048,
  gpu: false,
  system: "",
  temperature: null,
  maxNewTokens: 256,
  seed: null,
  shown: "both",
  marks: false,
};

const KEY = "ishrink settings";
const OWN_TEMPERATURE = 0.7;

export function readSettings(): Settings {
  return { ...DEFAULTS, ...(readStored(KEY) as Partial<Settings> | null) };
}

export function saveSettings(settings: Settings): void {
  writeStored(KEY, settings);
}

/** What is stored under a name, or null. Storage may be switched off. */
export function readStored(name: string): unknown {
  try {
    return JSON.parse(localStorage.getItem(storedName(name)) ?? "null");
  } catch {
    return null;
  }
}

/** Stores a value, or removes it if it is null; false if the browser refuses. */
export function writeStored(name: string, value: unknown): boolean {
  try {
    if (value === null) localStorage.removeItem(storedName(name));
    else localStorage.setItem(storedName(name), JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** Sites of one address, in different folders, do not share what they store. */
function storedName(name: string): string {
  return `${name} ${new URL("./", document.baseURI).pathname}`;
}

export function threadsOf(settings: Settings): number {
  return Math.min(settings.threads ?? defaultThreads(), mostThreads);
}

/** The tokens of context that a model is loaded with. */
export function contextOf(entry: ModelEntry, settings: Settings): number {
  return Math.min(settings.contextTokens, entry.context);
}

/** The model's own temperature: 0 where its config asks for greedy decoding, and 0.7 where it says nothing. */
export function ownTemperature(entry: ModelEntry): { value: number; source: string } {
  const { temperature, do_sample } = entry.generation;
  if (do_sample === false) return { value: 0, source: "the model's generation config asks for greedy decoding" };
  if (temperature !== undefined) return { value: temperature, source: "from the model's generation config" };
  return { value: OWN_TEMPERATURE, source: "the model's generation config says nothing" };
}

/** How a model samples. What its config does not say is as in transformers, so that both sample alike. */
export function samplingOf(entry: ModelEntry, settings: Settings): Sampling {
  const { top_p, top_k, min_p, repetition_penalty } = entry.generation;
  return {
    temperature: settings.temperature ?? ownTemperature(entry).value,
    topP: top_p ?? 1,
    topK: top_k ?? 50,
    minP: min_p ?? 0,
    repetitionPenalty: repetition_penalty ?? 1,
    maxNewTokens: settings.maxNewTokens,
    seed: settings.seed,
  };
}
