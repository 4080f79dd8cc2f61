/** Plots of the ratios by round: a row for each timing, all on one scale. SVG made element by element. */

import { element } from "./dom";
import { pairs, timing, type Sample, type SettingComparison } from "./samples";
import { metricTitle } from "./report_words";

const SPACE = "http://www.w3.org/2000/svg";
const WIDTH = 600;
const HEIGHT = 44;
const SIDE = 14;

/** One row: speed ratios of the rounds, their median, and its interval. */
interface Row {
  title: string;
  rounds: number[];
  ratio: number;
  low: number;
  high: number;
}

/** A figure of all timings; null where there is nothing to compare. */
export function ratioPlot(samples: readonly Sample[], comparisons: readonly SettingComparison[]): HTMLElement | null {
  const rows = plotRows(samples, comparisons);
  if (rows.length === 0) return null;
  const ends = rows.flatMap((row) => [row.low, row.high, ...row.rounds]);
  const scale = logScale(Math.min(0.95, ...ends), Math.max(1.05, ...ends));
  const caption = element("figcaption", {
    class: "small muted",
    text: "How many times as fast as the base the shrunk model is. A dot for each round, a line for the interval of the median. On the right of 1 the shrunk model is faster.",
  });
  return element("figure", { class: "ratios" }, [caption, ...rows.map((row) => plotRow(row, scale)), axis(scale)]);
}

function plotRows(samples: readonly Sample[], comparisons: readonly SettingComparison[]): Row[] {
  return pairs(samples).flatMap((pair) => {
    const { metric, setting } = pair.base;
    const comparison = comparisons.find((each) => each.metric === metric && each.setting === setting);
    if (!comparison) return [];
    const fast = metric.endsWith("_per_second");
    const [low, high] = comparison.interval;
    return [
      {
        title: metricTitle(metric, setting),
        rounds: timing(pair).ratios.map(Math.exp),
        ratio: fast ? comparison.ratio : 1 / comparison.ratio,
        low: fast ? low : 1 / high,
        high: fast ? high : 1 / low,
      },
    ];
  });
}

type Scale = { place(ratio: number): number; ticks: number[] };

function logScale(low: number, high: number): Scale {
  const [from, to] = [Math.log(low), Math.log(high)];
  const place = (ratio: number): number => SIDE + ((Math.log(ratio) - from) / (to - from)) * (WIDTH - 2 * SIDE);
  const steps = [0.1, 0.2, 0.25, 0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 4, 5, 10];
  const inside = steps.filter((step) => step >= low && step <= high);
  // The one at 1 stays, and others that are not too close to those that stay.
  const ticks: number[] = [1];
  for (const step of inside) {
    if (ticks.every((tick) => Math.abs(place(tick) - place(step)) >= 60)) ticks.push(step);
  }
  return { place, ticks };
}

function plotRow(row: Row, scale: Scale): HTMLElement {
  const at = (ratio: number): number => round(scale.place(ratio));
  const middle = HEIGHT / 2;
  const percent = row.ratio.toFixed(2);
  const label = `${row.title}: ${percent} times as fast, interval ${row.low.toFixed(2)} to ${row.high.toFixed(2)}, ${row.rounds.length} rounds from ${Math.min(...row.rounds).toFixed(2)} to ${Math.max(...row.rounds).toFixed(2)}`;
  const dots = row.rounds.map((ratio, index) => {
    // Spread over the height, so that equal rounds stay apart.
    const y = middle + (((index * 7) % 11) - 5) * 2.4;
    return svg("circle", { class: "dot", cx: at(ratio), cy: round(y), r: 4 });
  });
  const plot = picture(label, HEIGHT, [
    ...gridLines(scale, HEIGHT),
    ...dots,
    svg("line", { class: "interval", x1: at(row.low), x2: at(row.high), y1: middle, y2: middle }),
    svg("rect", { class: "median", x: at(row.ratio) - 3, y: middle - 10, width: 6, height: 20, rx: 2 }),
  ]);
  return element("div", { class: "ratio-row" }, [element("span", { class: "small", text: row.title }), plot]);
}

function axis(scale: Scale): HTMLElement {
  const labels = scale.ticks.map((tick) => {
    const text = svg("text", { x: round(scale.place(tick)), y: 18, "text-anchor": "middle" });
    text.textContent = `${tick}×`;
    return text;
  });
  const plot = picture("", 26, labels);
  plot.setAttribute("aria-hidden", "true");
  return element("div", { class: "ratio-row" }, [element("span"), plot]);
}

function gridLines(scale: Scale, height: number): SVGElement[] {
  return scale.ticks.map((tick) => {
    const x = round(scale.place(tick));
    return svg("line", { class: tick === 1 ? "grid one" : "grid", x1: x, x2: x, y1: 0, y2: height });
  });
}

function picture(label: string, height: number, children: readonly SVGElement[]): SVGElement {
  const plot = svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img" });
  if (label) plot.setAttribute("aria-label", label);
  plot.append(...children);
  return plot;
}

function svg(tag: string, attributes: Record<string, string | number>): SVGElement {
  const made = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  return made;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
