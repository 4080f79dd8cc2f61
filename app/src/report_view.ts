/** The report on the page: a table, plots, and a sentence for each verdict. */

import type { DeviceReport } from "./device_report";
import { element } from "./dom";
import { formatBytes } from "./format";
import { ratioPlot } from "./ratio_plot";
import { formatFigure, formatRange, metricTitle, tooFewSentence, verdictSentence } from "./report_words";
import { summary, type Sample, type SettingComparison } from "./samples";

/** Everything that is shown of a report. */
export function showReport(report: DeviceReport): HTMLElement[] {
  const measured = report.samples.length > 0;
  const parts: (HTMLElement | null)[] = [
    conditions(report),
    measured ? element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of figures" }, [table(report)]) : null,
    measured ? sentences(report) : null,
    ratioPlot(report.samples, report.comparisons),
    notes(report),
  ];
  return parts.filter((part) => part !== null);
}

function conditions({ device, runtime, settings, created, models }: DeviceReport): HTMLElement {
  const where = [device.name, device.browser, device.platform].filter(Boolean).join(", ");
  const threads = `${runtime.threads} thread${runtime.threads === 1 ? "" : "s"}`;
  const how = `${threads}${runtime.backend === "webgpu" ? ", WebGPU" : ""}, llama.cpp ${runtime.build}`;
  const what = settings.rounds ? `${settings.rounds} round${settings.rounds === 1 ? "" : "s"} of ${settings.new_tokens} new tokens` : "";
  const names = models.map((model) => `${model.name} (${model.role}, ${model.quantization}, ${formatBytes(model.bytes)})`);
  const lines = [names.join(" beside "), [where, how].filter(Boolean).join("; "), [what, new Date(created).toLocaleString()].filter(Boolean).join("; ")];
  return element("div", { class: "conditions" }, lines.map((text) => element("p", { class: "small muted", text })));
}

function table(report: DeviceReport): HTMLElement {
  const both = report.models.length === 2;
  const head = both ? ["Figure", "Base", "Shrunk", "Ratio", "Interval", "Verdict"] : ["Figure", "Median", "Turns"];
  const columns = head.map((text, index) => element("th", { scope: "col", role: "columnheader", class: index > 0 && text !== "Verdict" ? "number" : undefined, text }));
  const rows = report.samples.filter((sample) => sample.role === "shrunk").map((sample) => row(report, sample, both));
  const caption = both ? "Medians, and the quartiles below them. The ratio is shrunk over base." : "Medians, and the quartiles below them.";
  // On a small screen each row is a block of its own, which would no longer be read as a table without the roles.
  return element("table", { class: "figures-table", role: "table" }, [
    element("caption", { class: "small", text: caption }),
    element("thead", { role: "rowgroup" }, [element("tr", { role: "row" }, columns)]),
    element("tbody", { role: "rowgroup" }, rows),
  ]);
}

function row(report: DeviceReport, shrunk: Sample, both: boolean): HTMLElement {
  const { metric, setting } = shrunk;
  const same = (other: { metric: string; setting: string }): boolean => other.metric === metric && other.setting === setting;
  const title = element("th", { scope: "row", role: "rowheader", text: metricTitle(metric, setting) });
  const turns = shrunk.values.flat().length;
  if (!both) return element("tr", { role: "row" }, [title, figure("Median", shrunk), cell("Turns", String(turns))]);
  const base = report.samples.find((sample) => sample.role === "base" && same(sample));
  const comparison = report.comparisons.find(same);
  const ratio = comparison?.ratio ?? (base ? summary(shrunk).median / summary(base).median : null);
  const interval = comparison?.interval.map((end) => end.toFixed(3)).join(" – ");
  const verdict = comparison?.verdict;
  return element("tr", { role: "row" }, [
    title,
    base ? figure("Base", base) : cell("Base", "–"),
    figure("Shrunk", shrunk),
    cell("Ratio", ratio?.toFixed(3) ?? "–"),
    cell("Interval", interval ?? "–"),
    element("td", { class: "verdict", role: "cell", "data-label": "Verdict", "data-verdict": verdict, text: verdict ?? "not tested" }),
  ]);
}

function figure(label: string, sample: Sample): HTMLElement {
  const { median, quartiles } = summary(sample);
  const range = sample.values.flat().length > 1 ? formatRange(sample.metric, ...quartiles) : "once";
  const found = cell(label, "");
  found.append(
    element("span", { text: formatFigure(sample.metric, median) }),
    element("span", { class: "quartiles", text: range }),
  );
  return found;
}

function cell(label: string, text: string): HTMLElement {
  return element("td", { class: "number", role: "cell", "data-label": label, text });
}

function sentences({ comparisons, samples }: DeviceReport): HTMLElement | null {
  if (comparisons.length === 0) return null;
  const rounds = (comparison: SettingComparison): number =>
    samples.find(({ metric, setting }) => metric === comparison.metric && setting === comparison.setting)?.values.length ?? 0;
  const told = comparisons.filter(({ verdict }) => verdict !== "too few rounds to tell");
  const items = told.map((comparison) => element("li", { "data-verdict": comparison.verdict, text: verdictSentence(comparison) }));
  const few = comparisons.filter((comparison) => !told.includes(comparison));
  if (few.length) items.push(element("li", { text: tooFewSentence(few, Math.max(...few.map(rounds)), comparisons.length) }));
  return element("ul", { class: "sentences" }, items);
}

function notes(report: DeviceReport): HTMLElement | null {
  const found = [...report.notes];
  if (!report.runtime.cross_origin_isolated) found.push("one thread only: the server does not send the headers that threads need");
  if (found.length === 0) return null;
  return element("details", { class: "notes" }, [
    element("summary", { text: "How it was measured" }),
    element("ul", {}, found.map((text) => element("li", { class: "small", text }))),
  ]);
}
