/** The runtime that this page uses, for all of its models: figures of two runtimes cannot be compared. */

import { runtimeFor, type RunnableModel, type RuntimeName } from "./runtime_build";
import { versions } from "./versions";

let chosen: RuntimeName = "current";
let left: string | null = null;
let tell: (line: string) => void = () => undefined;

/**
 * Chooses by the site's models.
 *
 * @param onLeave Told in one line if the page leaves the fast runtime later, because it does not load a model.
 */
export function chooseRuntime(models: readonly RunnableModel[], onLeave: (line: string) => void = () => undefined): void {
  chosen = runtimeFor(models);
  left = null;
  tell = onLeave;
}

/** The runtime that loads the next model. Only the current one computes on a GPU. */
export function chosenRuntime(gpu: boolean): RuntimeName {
  return gpu ? "current" : chosen;
}

/** Uses the current runtime from now on, because the fast one does not load a model. */
export function leaveFastRuntime(reason: string): void {
  chosen = "current";
  left = `The faster build of llama.cpp did not load a model (${reason}), so this page uses the slower one for all models.`;
  tell(left);
}

/** Why the page has left the fast runtime; null if it has not. */
export function whyLeft(): string | null {
  return left;
}

/** The package and the build of llama.cpp, as a report names them. */
export function runtimeVersion(runtime: RuntimeName): { package: string; build: string } {
  return runtime === "fast"
    ? { package: `@wllama/wllama ${versions.wllamaFast}`, build: versions.llamaCppFast }
    : { package: `@wllama/wllama ${versions.wllama}`, build: versions.llamaCpp };
}

/** What the settings say of it. */
export function describeRuntime(gpu: boolean): string {
  const runtime = chosenRuntime(gpu);
  const { package: name, build } = runtimeVersion(runtime);
  const kind = runtime === "fast" ? "the faster build" : gpu ? "the build that has the GPU" : "the build that knows every architecture";
  return `Runtime: llama.cpp ${build} in ${name}, ${kind}.${left && !gpu ? ` ${left}` : ""}`;
}
