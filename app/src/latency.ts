/** Latencies of suggestions: their quantiles, a plot, and what would bring them under the line. */

import { byId, element } from "./dom";

/** On-device keyboards aim at this. */
export const LINE_MS = 50;

const SHOWN = 48;
const HEIGHT = 90;
const WIDTH = 480;

export interface SuggestionTiming {
  /** Until the first suggestion stood on the page, and until the last one did. */
  firstMs: number;
  allMs: number;
  /** Runs of the model until the first suggestion. */
  passes: number;
}

/** A quantile by linear interpolation, as numpy's default. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  const position = (sorted.length - 1) * share;
  const low = sorted[Math.floor(position)] ?? NaN;
  const high = sorted[Math.ceil(position)] ?? NaN;
  return low + (high - low) * (position - Math.floor(position));
}

/** One sentence: how far the first suggestion is from the line, and what it would take. */
export function verdictOf(timings: readonly SuggestionTiming[]): string {
  const median = quantile(timings.map((timing) => timing.firstMs), 0.5);
  const passes = timings.reduce((total, timing) => total + timing.passes, 0) / timings.length;
  const each = median / passes;
  const start = `A first suggestion takes ${passes.toFixed(1)} runs of the model, of ${Math.round(each)} ms each`;
  if (median <= LINE_MS) return `${start}: half of them are on the page within ${LINE_MS} ms.`;
  const times = median / LINE_MS;
  return `${start}. For ${LINE_MS} ms a run may take ${Math.floor(LINE_MS / passes)} ms: a model, or a device, that is ${times.toFixed(1)} times as fast.`;
}

export function showLatency(timings: readonly SuggestionTiming[]): void {
  byId("latency").hidden = timings.length === 0;
  if (timings.length === 0) return;
  const columns = [timings.map((timing) => timing.firstMs), timings.map((timing) => timing.allMs)];
  const milliseconds = (value: number): string => `${Math.round(value)} ms`;
  const within = (values: readonly number[]): string => `${values.filter((value) => value <= LINE_MS).length} of ${values.length}`;
  byId("latency-rows").replaceChildren(
    row("last", columns.map((values) => milliseconds(values.at(-1) ?? NaN))),
    row("median", columns.map((values) => milliseconds(quantile(values, 0.5)))),
    row("90th percentile", columns.map((values) => milliseconds(quantile(values, 0.9)))),
    row(`within ${LINE_MS} ms`, columns.map(within)),
  );
  byId("bars").replaceChildren(bars((columns[0] ?? []).slice(-SHOWN)));
  byId("verdict").textContent = verdictOf(timings);
}

function row(name: string, texts: readonly string[]): HTMLElement {
  return element("tr", {}, [
    element("th", { scope: "row", text: name }),
    ...texts.map((text) => element("td", { class: "number", text })),
  ]);
}

/** A bar for each of the newest first suggestions, with the line. The table says the same in words. */
function bars(values: readonly number[]): SVGElement {
  const highest = Math.max(LINE_MS * 1.6, ...values);
  const y = (value: number): number => HEIGHT - (value / highest) * (HEIGHT - 4);
  const width = WIDTH / SHOWN;
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  values.forEach((value, index) => {
    const bar = { x: index * width + 1, y: y(value), width: width - 2, height: HEIGHT - y(value), rx: 1.5 };
    svg.append(shape("rect", value > LINE_MS ? { ...bar, class: "slow" } : bar));
  });
  svg.append(shape("line", { x1: 0, x2: WIDTH, y1: y(LINE_MS), y2: y(LINE_MS) }));
  return svg;
}

function shape(name: string, attributes: Record<string, string | number>): SVGElement {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name) as SVGElement;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  return made;
}
