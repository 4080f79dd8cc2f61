/** models.json: what `ishrink app` put beside the page. */

export type Role = "shrunk" | "base";

export interface ModelPart {
  path: string;
  bytes: number;
  sha256: string;
}

/** What the model's own generation_config.json says; a key that it lacks is missing here. */
export interface GenerationConfig {
  temperature?: number;
  top_p?: number;
  top_k?: number;
  min_p?: number;
  repetition_penalty?: number;
  do_sample?: boolean;
}

export interface ModelEntry {
  role: Role;
  name: string;
  file: string;
  bytes: number;
  sha256: string;
  parts: ModelPart[];
  architecture: string;
  quantization: string;
  /** The types of its tensors. Missing in sites that an older version made. */
  tensor_types?: string[];
  parameters: number | null;
  context: number;
  vocabulary: number;
  kv_cache_bytes_per_token: number;
  chat_template: boolean;
  template_sha256: string | null;
  generation: GenerationConfig;
}

export interface Site {
  schema: number;
  title: string;
  models: ModelEntry[];
  probes: string | null;
}

const SCHEMA = 1;

/** Reads models.json. */
export async function readSite(): Promise<Site> {
  let response: Response;
  try {
    response = await fetch("models.json", { cache: "no-cache" });
  } catch {
    throw new Error("The list of models cannot be reached. Check the connection to the server, then load the page again.");
  }
  if (!response.ok) {
    throw new Error("There is no models.json beside this page. Make the site with: ishrink app --model MODEL --output FOLDER");
  }
  const site = (await response.json()) as Site;
  if (site.schema !== SCHEMA || !Array.isArray(site.models) || site.models.length === 0) {
    throw new Error("models.json is not of the kind that this page reads. Make the site again with the same version of ishrink.");
  }
  return site;
}

/** The models by role. A single model is the shrunk one. */
export function byRole(site: Site): Map<Role, ModelEntry> {
  return new Map(site.models.map((model) => [model.role, model]));
}
