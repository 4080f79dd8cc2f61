/** What was timed, round by round, and how two models compare in it: as optimum_ishrink/edge/benchmark.py does. */

import type { Role } from "./site";
import { compareTimings, inverted, median, quartiles, type Comparison, type Timing } from "./statistics";

export type Metric =
  | "model_load_seconds"
  | "time_to_first_token_seconds"
  | "decode_tokens_per_second"
  | "response_seconds"
  | "peak_memory_bytes";

/** One metric of one model under one setting. */
export interface Sample {
  role: Role;
  metric: Metric;
  /** Such as ", prompt 64" or ", cold cache". */
  setting: string;
  /** A list for each round, with one or two turns. */
  values: number[][];
}

export interface SettingComparison extends Comparison {
  metric: Metric;
  setting: string;
}

/** Collects values, and forgets those of a round that has to be repeated. */
export class Samples {
  private readonly found = new Map<string, Sample>();
  private round = new Map<string, Sample>();

  /** Adds a value of the round that runs. */
  add(role: Role, metric: Metric, setting: string, value: number): void {
    const key = [role, metric, setting].join("|");
    const sample = this.round.get(key) ?? { role, metric, setting, values: [[]] };
    sample.values[0]?.push(value);
    this.round.set(key, sample);
  }

  /** Keeps the values of the round. */
  keepRound(): void {
    for (const [key, { values, ...rest }] of this.round) {
      const sample = this.found.get(key) ?? { ...rest, values: [] };
      sample.values.push(...values);
      this.found.set(key, sample);
    }
    this.dropRound();
  }

  dropRound(): void {
    this.round = new Map();
  }

  get list(): Sample[] {
    return [...this.found.values()];
  }
}

export function isRate(metric: Metric): boolean {
  return metric.endsWith("_per_second");
}

/** The median and the quartiles of all turns. */
export function summary(sample: Sample): { median: number; quartiles: [number, number] } {
  const values = sample.values.flat();
  return { median: median(values), quartiles: quartiles(values) };
}

/** The base's and the shrunk model's samples of each timing, in the order of the samples. */
export function pairs(samples: readonly Sample[]): { base: Sample; shrunk: Sample }[] {
  return samples
    .filter((sample) => sample.role === "base")
    .flatMap((base) => {
      const shrunk = samples.find(
        ({ role, metric, setting }) => role === "shrunk" && metric === base.metric && setting === base.setting,
      );
      return shrunk ? [{ base, shrunk }] : [];
    });
}

/** How the shrunk model compares with the base. All timings are one family; memory is no timing and is not tested. */
export function compare(samples: readonly Sample[]): SettingComparison[] {
  const timed = pairs(samples).filter(({ base }) => base.metric !== "peak_memory_bytes");
  return compareTimings(timed.map(timing)).map((comparison, index) => {
    const { metric, setting } = timed[index]?.base ?? { metric: "response_seconds", setting: "" };
    return { metric, setting, ...(isRate(metric) ? comparison : inverted(comparison)) };
  });
}

/** Logs of the speed ratios by round, and of the base's ratios to itself. */
export function timing({ base, shrunk }: { base: Sample; shrunk: Sample }): Timing {
  const sign = isRate(base.metric) ? 1 : -1;
  const logs = (sample: Sample): number[][] => sample.values.map((turns) => turns.map((value) => sign * Math.log(value)));
  const old = logs(base);
  const means = old.map(mean);
  const ratios = logs(shrunk).map((turns, round) => mean(turns) - (means[round] ?? 0));
  return { ratios, own: old.every((turns) => turns.length === 2) ? turnDifferences(old) : roundDifferences(means) };
}

function turnDifferences(rounds: readonly number[][]): number[] {
  return rounds.map(([first = 0, second = 0]) => first - second);
}

/** Of one turn a round: in A B B A the base's two turns are a round apart, and an odd last round has no partner. */
function roundDifferences(means: readonly number[]): number[] {
  const found: number[] = [];
  for (let round = 0; round + 1 < means.length; round += 2) found.push((means[round] ?? 0) - (means[round + 1] ?? 0));
  return found.length ? found : [0];
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
