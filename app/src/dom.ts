/** Small helpers for the page. Text is only ever set as text: nothing here parses HTML. */

type Attributes = Record<string, string | number | boolean | undefined>;

/** The element of the page with this id; its kind is checked. */
export function byId<T extends HTMLElement = HTMLElement>(id: string, kind?: new () => T): T {
  const found = document.getElementById(id);
  if (!found || (kind && !(found instanceof kind))) throw new Error(`this page has no ${kind?.name ?? "element"} #${id}`);
  return found as T;
}

/** Makes an element. `text` becomes its text; `true` sets an attribute without a value. */
export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  children: readonly (Node | string)[] = [],
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (name === "text") made.textContent = String(value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children);
  return made;
}

/** A button that is no submit button. */
export function button(text: string, onClick: () => void, kind = ""): HTMLButtonElement {
  const made = element("button", { type: "button", class: kind || undefined, text });
  made.addEventListener("click", onClick);
  return made;
}

/** Offers a text as a file to save. */
export function download(name: string, text: string, type: string): void {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = element("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
