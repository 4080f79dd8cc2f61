// The content-security policy of every page: nothing is allowed but what stands here, and why.
// The build writes it into each page as a meta tag, and into page.json for the server to send as a header.

export const DIRECTIVES = {
  // Whatever is not named below is refused: frames, fonts, media, plug-ins.
  "default-src": "'none'",
  // The page's own files, and compiling WebAssembly. No inline script, and no eval of JavaScript.
  "script-src": "'self' 'wasm-unsafe-eval'",
  // 'self' is the service worker. wllama starts llama.cpp's worker, and that its threads, from a Blob.
  "worker-src": "'self' blob:",
  // models.json, the models' parts and the WebAssembly file, all beside the page.
  "connect-src": "'self'",
  "style-src": "'self'",
  "img-src": "'self'",
  "manifest-src": "'self'",
  // A <base> tag or a form could send what is typed elsewhere.
  "base-uri": "'none'",
  "form-action": "'none'",
};

export const POLICY = Object.entries(DIRECTIVES)
  .map(([directive, sources]) => `${directive} ${sources}`)
  .join("; ");
