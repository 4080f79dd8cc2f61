/**
 * Whether one model is faster than another: the rule of Python's optimum_ishrink/evaluation/timing.py, to the digit.
 *
 * tests/app/timing_cases.json has cases that both are tested against. Its reasons are in docs/explanation/statistics.md.
 */

import { selfSpread } from "./self_spread";

/** Probability, per run, of reporting a difference that does not exist. */
const LEVEL = 0.01;

/** Smaller differences, as a share, are not reported. */
const LEAST = 0.02;

/** An interval contains 1 exactly where the sign test, alone, finds no difference. */
const CONFIDENCE = 1 - LEVEL;

export type Verdict = "faster" | "slower" | "no difference" | "too few rounds to tell";

/** One timing over its rounds. */
export interface Timing {
  /** Log of the speed ratio to the first model, a value per round. */
  ratios: readonly number[];
  /** Log of the ratio of the first model's two turns. */
  own: readonly number[];
}

/** How two models compare in one timing; ratios are of speeds. */
export interface Comparison {
  ratio: number;
  interval: [number, number];
  coverage: number;
  p_value: number;
  adjusted_p_value: number;
  /** By how much the first model differs from itself, as a share. */
  spread: number;
  verdict: Verdict;
}

/** The order of a round in which each takes one turn: A B, B A, A B and so on. */
export function inTurn<T>(items: readonly T[], round: number): T[] {
  return round % 2 === 0 ? [...items] : [...items].reverse();
}

/** The middle of numbers; of an even count the mean of the middle two. */
export function median(values: readonly number[]): number {
  const ordered = sorted(values);
  const half = ordered.length >> 1;
  return ordered.length % 2 ? at(ordered, half) : (at(ordered, half - 1) + at(ordered, half)) / 2;
}

/** The first and third quartile, interpolated as Python's statistics.quantiles(method="inclusive"). */
export function quartiles(values: readonly number[]): [number, number] {
  const ordered = sorted(values);
  const last = ordered.length - 1;
  if (last === 0) return [at(ordered, 0), at(ordered, 0)];
  const cut = (part: number): number => {
    const index = Math.floor((part * last) / 4);
    const rest = (part * last) % 4;
    return (at(ordered, index) * (4 - rest) + at(ordered, Math.min(index + 1, last)) * rest) / 4;
  };
  return [cut(1), cut(3)];
}

/** The two-sided p-value that the median is zero: an exact binomial test of the signs. Zeros are left out. */
export function signTest(values: readonly number[]): number {
  const above = values.filter((value) => value > 0).length;
  const below = values.filter((value) => value < 0).length;
  const n = above + below;
  return Math.min(1, (2 * tail(n, Math.min(above, below))) / 2 ** n);
}

/** The narrowest interval between two values of symmetric rank that contains the median, and its exact confidence. */
export function medianInterval(values: readonly number[], confidence = CONFIDENCE): [number, number, number] {
  const ordered = sorted(values);
  const n = ordered.length;
  /** How often at most k of n rounds lie below the median, or above it. */
  const missed = (k: number) => (2 * tail(n, k)) / 2 ** n;
  let k = 0;
  while (2 * (k + 2) <= n && 1 - missed(k + 1) >= confidence) k++;
  return [at(ordered, k), at(ordered, n - 1 - k), Math.max(0, 1 - missed(k))];
}

/** p-values adjusted for multiple tests by Holm's step-down procedure. */
export function holm(pValues: readonly number[]): number[] {
  const adjusted = pValues.map(() => 0);
  const order = pValues.map((_, index) => index).sort((a, b) => at(pValues, a) - at(pValues, b));
  let largest = 0;
  order.forEach((index, rank) => {
    largest = Math.max(largest, Math.min(1, (pValues.length - rank) * at(pValues, index)));
    adjusted[index] = largest;
  });
  return adjusted;
}

/** Compares two models on every timing of a run. */
export function compareTimings(timings: readonly Timing[]): Comparison[] {
  const adjusted = holm(timings.map(({ ratios }) => signTest(ratios)));
  return timings.map((timing, index) => judge(timing, at(adjusted, index), timings.length));
}

function judge({ ratios, own }: Timing, adjusted: number, family: number): Comparison {
  const middle = median(ratios);
  const spread = selfSpread(own);
  const [low, high, coverage] = medianInterval(ratios);
  let verdict: Verdict = "no difference";
  if (family * 2 ** (1 - ratios.length) > LEVEL) {
    verdict = "too few rounds to tell"; // not even rounds that all agree would pass the test
  } else if (adjusted <= LEVEL && Math.abs(middle) > Math.max(spread, Math.log1p(LEAST))) {
    verdict = middle > 0 ? "faster" : "slower";
  }
  return {
    ratio: Math.exp(middle),
    interval: [Math.exp(low), Math.exp(high)],
    coverage,
    p_value: signTest(ratios),
    adjusted_p_value: adjusted,
    spread: Math.expm1(spread),
    verdict,
  };
}

/** The same comparison with ratios of durations, where it has ratios of speeds. */
export function inverted(comparison: Comparison): Comparison {
  const [low, high] = comparison.interval;
  return { ...comparison, ratio: 1 / comparison.ratio, interval: [1 / high, 1 / low] };
}

/** The number of ways in which at most k of n are chosen. */
function tail(n: number, k: number): number {
  let ways = 1n;
  let sum = 1n;
  for (let i = 1; i <= k; i++) {
    ways = (ways * BigInt(n - i + 1)) / BigInt(i);
    sum += ways;
  }
  return Number(sum);
}

function sorted(values: readonly number[]): number[] {
  return [...values].sort((a, b) => a - b);
}

function at(values: readonly number[], index: number): number {
  const value = values[index];
  if (value === undefined) throw new RangeError(`no value ${index} of ${values.length}`);
  return value;
}
