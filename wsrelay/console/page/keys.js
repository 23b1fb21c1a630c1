// The keyboard. What is typed into a field, or held with Ctrl, Alt or Meta, is left alone.

const PAGES = ["#/", "#/connections", "#/ends", "#/logs", "#/nodes"];

export function listen({ page, help, helpButton, home }) {
  helpButton.addEventListener("click", () => help.showModal());
  addEventListener("keydown", event => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
    if (document.querySelector("dialog[open]")) return;
    const { target, key } = event;
    if (target.closest?.("input, textarea, select")) {
      if (key === "Escape") {
        page()?.key("Escape");
        target.blur();
      }
      return;
    }
    if (key === "Enter" && target.closest?.("a, button, summary")) return;
    if (key === "?") help.showModal();
    else if (/^[1-5]$/.test(key)) location.hash = PAGES[Number(key) - 1];
    else if (!page()?.key(key)) {
      if (key !== "Escape") return;
      if (location.hash.startsWith("#/process") && history.length > 1) history.back();
      else home();
    }
    event.preventDefault();
  });
}
