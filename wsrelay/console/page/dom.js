// Elements. All text gets in as text: names, topics and tracebacks are what others have written.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Make an element: `h("a", { class: "x", href: "#/" }, "text", child)`. A property that begins with
 * `on` is a listener; one that is null or false is left out.
 *
 * @param {string} tag
 * @param {Record<string, any>} [properties]
 * @param {...(Node | string | null | undefined)} children
 * @returns {any}
 */
export function h(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/** The same for a part of an SVG. */
export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}

/** Set the text of an element, if it is another one: what is selected in it stays so. */
export function say(element, text) {
  const wanted = text === null || text === undefined ? "" : String(text);
  if (element.textContent !== wanted) element.textContent = wanted;
}

/** Set an attribute, or take it away with null. */
export function mark(element, name, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, String(value));
}

/** Set the address of a link. */
export function point(element, href) {
  if (element.getAttribute("href") !== href) mark(element, "href", href);
}

/**
 * Make the children of an element those of `keys`, in this order, with as few changes as possible:
 * `make(key)` makes one that is new, `update(element, key)` brings each up to date.
 */
export function keyed(parent, keys, make, update) {
  const known = (parent.wsrelayKeyed ??= new Map());
  const wanted = new Set(keys);
  for (const [key, element] of known) {
    if (wanted.has(key)) continue;
    element.remove();
    known.delete(key);
  }
  let next = parent.firstChild;
  for (const key of keys) {
    let element = known.get(key);
    if (element === undefined) known.set(key, (element = make(key)));
    update(element, key);
    if (element === next) next = next.nextSibling;
    else parent.insertBefore(element, next);
  }
}

/** The address of a page of the console. */
export function to(page, query = {}) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== "" && value !== null && value !== undefined && value !== false) search.set(name, value);
  }
  const text = search.toString();
  return `#/${page === "home" ? "" : page}${text && `?${text}`}`;
}
