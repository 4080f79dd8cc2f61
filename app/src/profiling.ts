/** The cost profile that `ishrink search --profile` takes: probes timed in turn, as optimum_ishrink/search/turns.py does. */

import { Engine, type CountedText } from "./engine";
import { WARM_UP } from "./measuring";
import { makeProbes, readPlan, settle, type ProbePlan, type ProbeTurn } from "./probes";
import type { Progress } from "./progress";
import { chosenRuntime, runtimeVersion } from "./runtime_choice";
import { inTurn } from "./statistics";
import type { Undisturbed } from "./undisturbed";

/** The form of profiles: optimum_ishrink/planning/profile_schema.py. */
const PROFILE_SCHEMA = 3;

/** Tokens of context in addition to the prompt and its answer. */
const MARGIN = 8;

export interface ProfileOptions {
  threads: number;
  gpu: boolean;
  /** Turns of each probe; null for what the plan says. */
  rounds: number | null;
}

/** Times the probes of a plan in turn, each turn in a worker of its own, and returns the profile. */
export async function measureProfile(
  path: string,
  options: ProfileOptions,
  progress: Progress,
  undisturbed: Undisturbed,
  signal: AbortSignal,
): Promise<object> {
  progress.say("Making the probes");
  const plan = await readPlan(path);
  const files = await makeProbes(path, plan);
  const run = new ProbeRun(plan, options, signal);
  const runtime = chosenRuntime(options.gpu);
  const rounds = options.rounds ?? plan.rounds;
  progress.begin(rounds, rounds * files.length);
  const turns: ProbeTurn[][] = files.map(() => []);
  for (let round = 0; round < rounds; round++) {
    progress.startRound(round, round * files.length);
    for (const index of inTurn([...files.keys()], round)) {
      turns[index]?.push(await takeTurn(() => run.turn(files[index] ?? new Blob(), index), undisturbed, signal));
      progress.step();
    }
  }
  const probes = plan.profile.probes.map((probe, index) => ({ ...probe, figures: settle(turns[index] ?? []) }));
  if (chosenRuntime(options.gpu) !== runtime) {
    throw new Error("The faster build of llama.cpp did not load every probe, so the figures are of two builds. Measure the profile again: it uses the other build from the start.");
  }
  const { package: name, build: llamaCpp } = runtimeVersion(runtime);
  const build = `${name}, llama.cpp ${llamaCpp}`;
  return { schema: PROFILE_SCHEMA, ...plan.profile, build, threads: run.threads, probes };
}

/** A turn during which the page was visible. */
async function takeTurn(turn: () => Promise<ProbeTurn>, undisturbed: Undisturbed, signal: AbortSignal): Promise<ProbeTurn> {
  for (;;) {
    await undisturbed.visible(signal);
    const found = await turn();
    if (!undisturbed.takeHidden()) return found;
  }
}

class ProbeRun {
  threads = 0;
  /** The warm-up and the prompt of each probe: their vocabularies differ in size. */
  private readonly prompts = new Map<number, CountedText[]>();

  constructor(
    private readonly plan: ProbePlan,
    private readonly options: ProfileOptions,
    private readonly signal: AbortSignal,
  ) {}

  async turn(file: Blob, index: number): Promise<ProbeTurn> {
    this.signal.throwIfAborted();
    const { prompt, new_tokens: newTokens, context } = this.plan.profile.workload;
    const contextTokens = Math.max(context, prompt + newTokens + MARGIN);
    const { threads, gpu } = this.options;
    const engine = await Engine.open(file, { threads, gpu, contextTokens });
    const stop = (): void => void engine.close();
    this.signal.addEventListener("abort", stop, { once: true });
    try {
      this.signal.throwIfAborted();
      this.threads = engine.threads;
      const made = this.prompts.get(index) ?? [await engine.textOfTokens(WARM_UP.prompt), await engine.textOfTokens(prompt)];
      this.prompts.set(index, made);
      const [warmUp, text] = made.map((each) => each.text);
      await engine.time(warmUp ?? "", WARM_UP.newTokens);
      const found = await engine.time(text ?? "", newTokens);
      return { decode: found.decodeTokensPerSecond, ttft: found.firstTokenSeconds };
    } catch (error) {
      this.signal.throwIfAborted(); // a stopped turn fails because its worker is gone
      throw error;
    } finally {
      this.signal.removeEventListener("abort", stop);
      await engine.close();
    }
  }
}
