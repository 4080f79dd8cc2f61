/** What was found, in words and rounded figures. */

import { formatBytes, formatRate, formatSeconds } from "./format";
import type { Metric, SettingComparison } from "./samples";

const TITLES: Record<Metric, string> = {
  model_load_seconds: "Loading",
  time_to_first_token_seconds: "Time to first token",
  decode_tokens_per_second: "Decoding",
  response_seconds: "Whole response",
  peak_memory_bytes: "Memory",
};

/** Such as "Decoding, prompt 64". */
export function metricTitle(metric: Metric, setting: string): string {
  return `${TITLES[metric]}${setting}`;
}

export function formatFigure(metric: Metric, value: number): string {
  if (metric === "decode_tokens_per_second") return formatRate(value);
  if (metric === "peak_memory_bytes") return formatBytes(value);
  return formatSeconds(value);
}

/** A figure without its unit where another with it stands beside. */
export function formatRange(metric: Metric, low: number, high: number): string {
  return `${formatFigure(metric, low).replace(/ .*/, unitless(metric, low, high))} – ${formatFigure(metric, high)}`;
}

/** The unit stays where the two differ in it, such as 980 ms – 1.02 s. */
function unitless(metric: Metric, low: number, high: number): string {
  const unit = (value: number): string => formatFigure(metric, value).replace(/^\S+/, "");
  return unit(low) === unit(high) ? "" : unit(low);
}

/** A ratio as people say it: 28 % less, 46 % more. */
export function formatChange(ratio: number): string {
  const percent = Math.abs(ratio - 1) * 100;
  const digits = percent < 10 ? 1 : 0;
  return `${percent.toFixed(digits)} % ${ratio < 1 ? "less" : "more"}`;
}

/** What a verdict means, as a sentence. */
export function verdictSentence({ metric, setting, ratio, interval, verdict }: SettingComparison): string {
  const title = metricTitle(metric, setting);
  const rate = metric === "decode_tokens_per_second";
  const what = rate ? "tokens per second" : "time";
  if (verdict === "no difference") return `${title}: no difference that these rounds could tell (${formatChange(ratio)} ${what}).`;
  const [low, high] = interval.map(formatChange);
  return `${title}: the shrunk model is ${verdict}. It ${rate ? "gives" : "takes"} ${formatChange(ratio)} ${what} than the base (${low} to ${high}).`;
}

/** What is said of timings that have too few rounds. */
export function tooFewSentence(timings: readonly SettingComparison[], rounds: number, family: number): string {
  const titles = timings.map(({ metric, setting }) => metricTitle(metric, setting));
  const which = timings.length === family ? "any figure" : titles.join("; ");
  return `Too few rounds to tell of ${which}: ${rounds}, and with as many figures as here it takes ${fewestRounds(family)}.`;
}

/** Rounds without which not even rounds that all agree pass the test. */
export function fewestRounds(family: number): number {
  return Math.ceil(1 + Math.log2(family / 0.01));
}
