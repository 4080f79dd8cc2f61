/** What the page was built from; the build fills these in. */

declare const PAGE_VERSION: string;
declare const WLLAMA_VERSION: string;
declare const LLAMA_CPP_BUILD: string;
declare const WLLAMA_FAST_VERSION: string;
declare const LLAMA_CPP_FAST_BUILD: string;

export const versions = {
  page: PAGE_VERSION,
  wllama: WLLAMA_VERSION,
  llamaCpp: LLAMA_CPP_BUILD,
  wllamaFast: WLLAMA_FAST_VERSION,
  llamaCppFast: LLAMA_CPP_FAST_BUILD,
} as const;
