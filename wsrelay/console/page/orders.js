// What the user may do to a process or a client, if the console was started with --write.

import { h, say } from "./dom.js";

/** @param {{ ask(message: object): Promise<any> }} live */
export class Orders {
  #live;

  constructor(live) {
    this.#live = live;
  }

  /** Buttons for a process, and where their outcome is said. */
  ofProcess(pid, name) {
    const outcome = h("p", { class: "error", role: "alert" });
    const button = (label, act, danger) =>
      h("button", { type: "button", class: danger ? "small danger" : "small", onclick: act }, label);
    const bar = h(
      "div",
      { class: "bar orders" },
      button("Send\u2026", () => this.#message("send", pid, name)),
      button("Call\u2026", () => this.#message("call", pid, name)),
      button("Cancel\u2026", () => this.#end("cancel", pid, name, "Ask it to end", "Reason, which it and its clients are told"), true),
      button("Kill\u2026", () => this.#end("kill", pid, name, "End it at once, with what it holds"), true),
    );
    return { bar, outcome };
  }

  /** Ask whether to close a client, and do it. */
  close(pid, client) {
    const code = h("input", { inputmode: "numeric", value: "1000", maxlength: "4", required: true, pattern: "[0-9]{4}" });
    const reason = h("input", { maxlength: "120" });
    dialog(`Close ${client}`, "Close", true, [labelled("Close code", code), labelled("Reason", reason)], () =>
      this.#act("close", pid, { code: Number(code.value), reason: reason.value }));
  }

  #end(what, pid, name, hint, question) {
    const reason = question ? h("input", { maxlength: "120" }) : null;
    const fields = [h("p", { class: "hint" }, hint), reason && labelled(question, reason)];
    dialog(`${what === "kill" ? "Kill" : "Cancel"} ${name}`, what === "kill" ? "Kill" : "Cancel it", true, fields, () =>
      this.#act(what, pid, reason ? { reason: reason.value } : {}));
  }

  #message(what, pid, name) {
    const topic = h("input", { required: true, maxlength: "200", spellcheck: "false", autocapitalize: "none" });
    const payload = h("textarea", { class: "mono", rows: "4", spellcheck: "false" }, "null");
    const answer = h("pre", { class: "answer", hidden: true, tabindex: "0" });
    const fields = [labelled("Topic", topic), labelled("Payload, as JSON", payload), answer];
    dialog(`${what === "send" ? "Send to" : "Call"} ${name}`, what === "send" ? "Send" : "Call", false, fields, async () => {
      let value;
      try {
        value = JSON.parse(payload.value.trim() || "null");
      } catch (error) {
        throw new Error(`The payload is not JSON (${error.message}); text needs quotes of its own: "hello"`);
      }
      const result = await this.#act(what, pid, { topic: topic.value, payload: value });
      if (what === "send") return;
      answer.hidden = false;
      say(answer, JSON.stringify(result, null, 2));
      return "stay";
    });
  }

  #act(what, of, more) {
    return this.#live.ask({ type: "act", what, of, ...more });
  }
}

/** Ask in a dialog; `act` is awaited, and what it fails with is said there. */
function dialog(title, label, danger, fields, act) {
  const error = h("p", { class: "error", role: "alert" });
  const submit = h("button", { class: danger ? "danger" : "primary" }, label);
  const cancel = h("button", { type: "button", onclick: () => element.close() }, "Back");
  const form = h("form", { method: "dialog" }, h("h2", {}, title), ...fields, error, h("div", { class: "bar" }, cancel, submit));
  const element = h("dialog", { "aria-label": title, onclose: () => element.remove() }, form);
  form.addEventListener("submit", async event => {
    event.preventDefault();
    say(error, "");
    submit.disabled = true;
    try {
      if ((await act()) !== "stay") element.close();
    } catch (problem) {
      say(error, problem.message);
    } finally {
      submit.disabled = false;
    }
  });
  document.body.append(element);
  element.showModal();
}

function labelled(text, field) {
  return h("label", { class: "field" }, text, field);
}
