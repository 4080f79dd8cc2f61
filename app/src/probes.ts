/** Probes: files of random weights in many shapes and types, put together here from headers and a few kilobytes of weights. */

import { DamagedFile } from "./errors";

/** probes/plan.json, as optimum_ishrink/search/device_program.py writes it. */
export interface ProbePlan {
  profile: {
    workload: { prompt: number; new_tokens: number; context: number };
    probes: { name: string; [rest: string]: unknown }[];
    [rest: string]: unknown;
  };
  files: ProbeFile[];
  threads: number | null;
  rounds: number;
}

interface ProbeFile {
  /** Bytes of the header. */
  header: number;
  /** The tensors in the file's order: name of the type, and bytes. */
  parts: [string, number][];
}

/** What a probe took in one turn: tokens per second, and seconds to the first token. */
export interface ProbeTurn {
  decode: number;
  ttft: number;
}

/** GGUF's tensors begin at multiples of this many bytes. */
const ALIGNMENT = 32;

/** Weights are repeated in pieces of about this many bytes. */
const CHUNK = 2 ** 22;

const AGAIN = "Make the site again with ishrink app --probes.";

export async function readPlan(path: string): Promise<ProbePlan> {
  const response = await fetched(path);
  return (await response.json()) as ProbePlan;
}

/** The probes' files, in the plan's order. They take no memory until they are read. */
export async function makeProbes(path: string, plan: ProbePlan): Promise<Blob[]> {
  const folder = path.slice(0, path.lastIndexOf("/") + 1);
  const headers = await unpacked(await fetched(`${folder}headers.gz`));
  const total = plan.files.reduce((sum, file) => sum + file.header, 0);
  if (headers.size !== total) throw new DamagedFile(`The headers of the probes have ${headers.size} bytes instead of ${total}. ${AGAIN}`);
  const names = new Set(plan.files.flatMap((file) => file.parts.map(([name]) => name)));
  const chunks = new Map<string, Blob>();
  for (const name of names) {
    const tile = await (await fetched(`${folder}tiles/${name}`)).blob();
    chunks.set(name, repeated(tile, Math.max(1, Math.floor(CHUNK / tile.size))));
  }
  let start = 0;
  return plan.files.map((file) => {
    const header = headers.slice(start, start + file.header);
    start += file.header;
    return assembled(header, file.parts, chunks);
  });
}

/** A header, and the tensors after it, each a chunk again and again. */
function assembled(header: Blob, parts: ProbeFile["parts"], chunks: ReadonlyMap<string, Blob>): Blob {
  const pieces: BlobPart[] = [header, padding(header.size)];
  for (const [name, bytes] of parts) {
    const chunk = chunks.get(name) ?? new Blob();
    for (let left = bytes; left > 0; left -= chunk.size) pieces.push(left < chunk.size ? chunk.slice(0, left) : chunk);
    pieces.push(padding(bytes));
  }
  return new Blob(pieces);
}

function padding(bytes: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array((ALIGNMENT - (bytes % ALIGNMENT)) % ALIGNMENT);
}

function repeated(tile: Blob, times: number): Blob {
  return new Blob(Array.from({ length: times }, () => tile));
}

async function unpacked(response: Response): Promise<Blob> {
  // A server may have unpacked it already, by a header that names the encoding.
  const packed = await response.blob();
  const [first, second] = new Uint8Array(await packed.slice(0, 2).arrayBuffer());
  if (first !== 0x1f || second !== 0x8b) return packed;
  return new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).blob();
}

async function fetched(path: string): Promise<Response> {
  const response = await fetch(path, { cache: "no-cache" });
  if (!response.ok) throw new DamagedFile(`The server answers ${response.status} for ${path}. ${AGAIN}`);
  return response;
}

/** The lower quartile of a probe's times: what disturbs a turn makes it slower, never faster. */
export function settle(turns: readonly ProbeTurn[]): ProbeTurn {
  const place = Math.floor((turns.length - 1) / 4);
  const decode = turns.map((turn) => turn.decode).sort((a, b) => b - a);
  const ttft = turns.map((turn) => turn.ttft).sort((a, b) => a - b);
  return { decode: decode[place] ?? 0, ttft: ttft[place] ?? 0 };
}
