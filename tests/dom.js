// Just enough of a browser's document for the script of our pages (train/web/page.js), over a page's own markup.
// `markup` is a tree of {tag, attributes, children}, children being trees or text; set before this runs.
class Element {
  constructor(tree, parent) {
    this.tag = tree.tag;
    this.attributes = new Map(Object.entries(tree.attributes));
    this.parent = parent;
    this.nodes = tree.children.map((one) => (typeof one === "string" ? one : new Element(one, this)));
    this.listeners = {};
    this.style = {};
    this.hidden = this.attributes.has("hidden");
  }
  get children() { return this.nodes.filter((one) => typeof one !== "string"); }
  get textContent() { return this.nodes.map((one) => (typeof one === "string" ? one : one.textContent)).join(""); }
  set textContent(text) { this.nodes = [text]; }
  getAttribute(name) { return this.attributes.has(name) ? this.attributes.get(name) : null; }
  setAttribute(name, value) { this.attributes.set(name, String(value)); }
  removeAttribute(name) { this.attributes.delete(name); }
  appendChild(node) {
    node.parent.nodes = node.parent.nodes.filter((one) => one !== node);
    node.parent = this;
    this.nodes.push(node);
  }
  matches(selector) {
    if (selector[0] === ".") return (this.getAttribute("class") || "").split(" ").includes(selector.slice(1));
    return selector[0] === "#" ? this.getAttribute("id") === selector.slice(1) : this.tag === selector;
  }
  querySelectorAll(selector) {
    return this.children.flatMap((one) => [...(one.matches(selector) ? [one] : []), ...one.querySelectorAll(selector)]);
  }
  querySelector(selector) { return this.querySelectorAll(selector)[0] || null; }
  getElementById(id) { return this.querySelector("#" + id); }
  getBoundingClientRect() { return { left: 10, top: 20, width: 100, height: 30 }; }
  addEventListener(name, listener) { (this.listeners[name] = this.listeners[name] || []).push(listener); }
  click() { this.dispatch("click"); }
  focus() { this.dispatch("focus"); }
  dispatch(name, event) { for (const listener of this.listeners[name] || []) listener(event || {}); }
}

const document = new Element(markup, null);
const window = { innerWidth: 390, innerHeight: 800 };
