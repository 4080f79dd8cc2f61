/** device_report.json: what `ishrink card --device-report` and `ishrink search --profile` read. */

import { cores, isolated, memoryGb } from "./environment";
import { contextTokens, type MeasureSettings } from "./measure_settings";
import type { Measured } from "./measuring";
import { compare, type Sample, type SettingComparison } from "./samples";
import { chosenRuntime, runtimeVersion } from "./runtime_choice";
import { readStored, writeStored } from "./settings";
import type { ModelEntry } from "./site";
import { versions } from "./versions";

export interface DeviceReport {
  schema: 1;
  kind: "ishrink-device-report";
  created: string;
  device: {
    name: string;
    user_agent: string;
    platform: string;
    browser: string;
    cores: number;
    memory_gb: number | null;
    mobile: boolean;
  };
  runtime: {
    name: "llama.cpp";
    package: string;
    build: string;
    threads: number;
    backend: "cpu" | "webgpu";
    cross_origin_isolated: boolean;
  };
  page: { version: string };
  settings: { rounds: number; prompt_lengths: number[]; new_tokens: number; context: number };
  models: Pick<ModelEntry, "role" | "name" | "file" | "bytes" | "sha256" | "quantization" | "vocabulary">[];
  samples: Sample[];
  comparisons: SettingComparison[];
  notes: string[];
  profile: object | null;
}

const STORED = "ishrink device report";

/** Makes the report of a measurement. */
export function makeReport(models: readonly ModelEntry[], settings: MeasureSettings, measured: Measured): DeviceReport {
  return {
    schema: 1,
    kind: "ishrink-device-report",
    created: new Date().toISOString().replace(/\.\d+Z$/, "Z"),
    device: { name: settings.deviceName, ...describeDevice() },
    runtime: {
      name: "llama.cpp",
      ...runtimeVersion(chosenRuntime(settings.gpu)),
      threads: measured.threads,
      backend: settings.gpu ? "webgpu" : "cpu",
      cross_origin_isolated: isolated,
    },
    page: { version: versions.page },
    settings: {
      rounds: measured.rounds,
      prompt_lengths: settings.lengths,
      new_tokens: settings.newTokens,
      context: contextTokens(settings),
    },
    models: models.map(({ role, name, file, bytes, sha256, quantization, vocabulary }) => ({
      role,
      name,
      file,
      bytes,
      sha256,
      quantization,
      vocabulary,
    })),
    samples: measured.samples,
    comparisons: compare(measured.samples),
    notes: measured.notes,
    profile: null,
  };
}

/** The last report of this site's models, or null. */
export function lastReport(models: readonly ModelEntry[]): DeviceReport | null {
  const report = readStored(STORED) as DeviceReport | null;
  if (report?.schema !== 1 || report.kind !== "ishrink-device-report") return null;
  const same = report.models.map(({ sha256 }) => sha256).join() === models.map(({ sha256 }) => sha256).join();
  return same ? report : null;
}

/** Stores a report; false if the browser refuses. */
export function keepReport(report: DeviceReport): boolean {
  return writeStored(STORED, report);
}

interface AgentData {
  brands: { brand: string; version: string }[];
  mobile: boolean;
  platform: string;
}

function describeDevice(): Omit<DeviceReport["device"], "name"> {
  const data = (navigator as { userAgentData?: AgentData }).userAgentData;
  const agent = navigator.userAgent;
  return {
    user_agent: agent,
    platform: data?.platform || navigator.platform,
    browser: browserName(agent, data),
    cores,
    memory_gb: memoryGb,
    mobile: data?.mobile ?? /Mobi|Android|iPhone|iPad/.test(agent),
  };
}

function browserName(agent: string, data: AgentData | undefined): string {
  // Browsers put a made-up brand among theirs; the one that is not Chromium says more.
  const brands = (data?.brands ?? []).filter(({ brand }) => !/not.*brand/i.test(brand));
  const brand = brands.find((each) => each.brand !== "Chromium") ?? brands[0];
  if (brand) return `${brand.brand} ${brand.version}`;
  const match = /(Firefox|Edg|OPR|Chrome|CriOS|FxiOS)\/(\d+)/.exec(agent) ?? /(Version)\/(\d+[.\d]*).*Safari/.exec(agent);
  if (!match) return "";
  const names: Record<string, string> = { Edg: "Edge", OPR: "Opera", CriOS: "Chrome", FxiOS: "Firefox", Version: "Safari" };
  const [, name = "", version = ""] = match;
  return `${names[name] ?? name} ${version}`;
}
