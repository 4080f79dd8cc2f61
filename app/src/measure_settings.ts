/** What the user asks the measurement for: read from the form, or from the page's address. */

import { byId } from "./dom";
import { defaultThreads, mostThreads } from "./environment";
import { readStored, writeStored } from "./settings";
import type { ModelEntry } from "./site";

export interface MeasureSettings {
  rounds: number;
  /** Rounds that also fetch the files again and load them; the first ones. */
  coldRounds: number;
  /** Prompt lengths in tokens. */
  lengths: number[];
  newTokens: number;
  threads: number;
  gpu: boolean;
  /** Measure memory as well. Browsers take their time to tell it. */
  memory: boolean;
  deviceName: string;
}

/** Tokens of context in addition to the prompt and its answer. */
const MARGIN = 8;

/** Over a network each cold round fetches the files again, which takes long and may cost money. */
const NETWORK_COLD_ROUNDS = 3;

const STORED = "ishrink device name";

/** True where the site is served by the device itself. */
export const served: "here" | "network" = /^(localhost|127\.|\[?::1)/.test(location.hostname) ? "here" : "network";

/** The settings unless the user chooses others. */
export function defaultMeasureSettings(): MeasureSettings {
  const rounds = 16;
  return {
    rounds,
    coldRounds: served === "here" ? rounds : NETWORK_COLD_ROUNDS,
    lengths: [64, 256],
    newTokens: 32,
    threads: defaultThreads(),
    gpu: false,
    memory: true,
    deviceName: String(readStored(STORED) ?? ""),
  };
}

/** Tokens of context that the settings need. */
export function contextTokens(settings: MeasureSettings): number {
  return Math.max(16, ...settings.lengths) + settings.newTokens + MARGIN;
}

/** What is wrong with the settings for these models; null if nothing is. */
export function refusal(settings: MeasureSettings, models: readonly ModelEntry[]): string | null {
  const numbers = [settings.rounds, ...settings.lengths, settings.newTokens, settings.threads];
  if (settings.lengths.length === 0 || !numbers.every((number) => Number.isInteger(number) && number >= 1)) {
    return "Rounds, prompt lengths, new tokens and threads must be whole numbers of at least 1, prompt lengths separated by commas.";
  }
  if (settings.newTokens < 2) return "At least 2 new tokens are needed to time decoding.";
  if (!Number.isInteger(settings.coldRounds) || settings.coldRounds < 0) return "Cold loads must be a whole number, or 0 for none.";
  const context = Math.min(...models.map((model) => model.context));
  if (contextTokens(settings) > context) {
    const most = Math.max(0, context - settings.newTokens - MARGIN);
    return `A prompt of ${Math.max(...settings.lengths)} tokens with ${settings.newTokens} new ones does not fit into ${context} tokens of context. The longest that fits has ${most}.`;
  }
  return null;
}

/** The settings in the page's address (`?rounds=3&lengths=16,32`), others as they are. */
export function settingsFromAddress(settings: MeasureSettings, query: URLSearchParams): MeasureSettings {
  const number = (name: string, otherwise: number): number => (query.has(name) ? Number(query.get(name)) : otherwise);
  const yes = (name: string, otherwise: boolean): boolean => (query.has(name) ? query.get(name) === "1" : otherwise);
  const rounds = number("rounds", settings.rounds);
  return {
    rounds,
    coldRounds: number("cold", Math.min(rounds, settings.coldRounds)),
    lengths: query.has("lengths") ? parseLengths(query.get("lengths") ?? "") : settings.lengths,
    newTokens: number("new", settings.newTokens),
    threads: number("threads", settings.threads),
    gpu: yes("gpu", settings.gpu),
    memory: yes("memory", settings.memory),
    deviceName: query.get("device") ?? settings.deviceName,
  };
}

/** The settings of the form. */
export function readForm(): MeasureSettings {
  const number = (id: string): number => byId(id, HTMLInputElement).valueAsNumber;
  const deviceName = byId("device-name", HTMLInputElement).value.trim();
  writeStored(STORED, deviceName || null);
  return {
    rounds: number("rounds"),
    coldRounds: Math.min(number("cold-rounds"), number("rounds")),
    lengths: parseLengths(byId("lengths", HTMLInputElement).value),
    newTokens: number("new-tokens"),
    threads: Number(byId("threads", HTMLSelectElement).value),
    gpu: byId("gpu", HTMLInputElement).checked,
    memory: byId("memory", HTMLInputElement).checked,
    deviceName,
  };
}

/** Puts settings into the form. */
export function fillForm(settings: MeasureSettings): void {
  const put = (id: string, value: string | number): void => {
    byId(id, HTMLInputElement).value = String(value);
  };
  put("rounds", settings.rounds);
  put("cold-rounds", settings.coldRounds);
  put("lengths", settings.lengths.join(", "));
  put("new-tokens", settings.newTokens);
  put("device-name", settings.deviceName);
  byId("gpu", HTMLInputElement).checked = settings.gpu;
  byId("memory", HTMLInputElement).checked = settings.memory;
  const threads = byId("threads", HTMLSelectElement);
  const counts = Array.from({ length: Math.max(mostThreads, settings.threads) }, (_, index) => index + 1);
  threads.replaceChildren(...counts.map((count) => new Option(String(count), String(count), false, count === settings.threads)));
  byId("cold-hint").textContent =
    served === "here"
      ? "Each fetches the files again, past every cache. 0 for none."
      : `Each fetches the files again, over the network. With fewer than about ${settings.rounds} there is no verdict on them. 0 for none.`;
}

function parseLengths(text: string): number[] {
  return [...new Set(text.split(/[\s,;]+/).filter(Boolean).map(Number))];
}
