/** What every page starts with: the notice for unserved files goes, the service worker comes, models.json is read. */

import { byId } from "./dom";
import { isolated, threadNotice } from "./environment";
import { explain } from "./errors";
import { forgetOthers } from "./model_files";
import { chooseRuntime } from "./runtime_choice";
import { readSite, type Site } from "./site";

/** Starts a page, and returns what it is about; null if it cannot be used, and says why. */
export async function startPage(): Promise<Site | null> {
  byId("unserved").hidden = true;
  void keepOffline();
  try {
    const site = await readSite();
    chooseRuntime(site.models, showRuntimeNotice);
    document.title = `${document.title} · ${site.title}`;
    void forgetOthers(site.models).catch(() => undefined);
    return site;
  } catch (error) {
    showFailure(error);
    return null;
  }
}

/** Shows a failure at the top of the page. */
export function showFailure(error: unknown): void {
  const place = byId("page-failure");
  place.textContent = explain(error);
  place.hidden = false;
}

function showRuntimeNotice(line: string): void {
  const place = byId("runtime-notice");
  place.textContent = line;
  place.hidden = false;
}

async function keepOffline(): Promise<void> {
  const notice = byId("thread-notice");
  notice.textContent = threadNotice();
  notice.hidden = notice.textContent === "";
  if (!("serviceWorker" in navigator)) return;
  try {
    await navigator.serviceWorker.register("sw.js", { type: "module", updateViaCache: "none" });
    await navigator.serviceWorker.ready;
  } catch {
    return; // some embedded browsers and private windows refuse: the page works, but not without a network
  }
  document.documentElement.dataset["offline"] = "ready";
  if (!isolated && !notice.hidden) {
    // The cached page comes with the headers, whatever the server sends.
    const again = document.createElement("button");
    again.type = "button";
    again.className = "plain";
    again.textContent = "Load the page again to use more";
    again.addEventListener("click", () => location.reload());
    notice.append(" ", again);
  }
}
