// A minute of one figure, as a small chart.

import { h, mark, say, svg } from "./dom.js";

const WIDTH = 120;
const HEIGHT = 36;
const LOOKS = 60;

/**
 * A card with a title, the present figure and its last minute.
 *
 * @param {string} title
 * @param {(value: number | undefined) => string} written
 * @param {number} series Which of the colours it has, from 1.
 */
export function chart(title, written, series) {
  const value = h("span", { class: "figure" });
  const area = svg("path", { class: `series-${series} area` });
  const line = svg("path", { class: `series-${series}` });
  const most = h("span", { class: "most" });
  const picture = svg(
    "svg",
    { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }),
    area,
    line,
  );
  const element = h(
    "section",
    { class: "card stat", "aria-label": title },
    h("div", { class: "stat-head" }, h("h2", {}, title), most),
    value,
    picture,
  );

  /** @param {Record<string, number> | undefined} values by the number of their look */
  function update(values) {
    const looks = Object.keys(values ?? {}).map(Number).sort((a, b) => a - b);
    const last = looks.at(-1);
    say(value, written(last === undefined ? undefined : values[last]));
    if (last === undefined) return;
    const highest = Math.max(...looks.map(look => values[look]));
    say(most, looks.length > 1 && highest > 0 ? `max ${written(highest)}` : "");
    const top = highest * 1.15 || 1;
    const points = looks.map(look => {
      const x = WIDTH - ((last - look) / (LOOKS - 1)) * WIDTH;
      return `${x.toFixed(1)},${(HEIGHT - 1 - (values[look] / top) * (HEIGHT - 3)).toFixed(1)}`;
    });
    const left = points[0].split(",")[0];
    mark(line, "d", points.length > 1 ? `M${points.join("L")}` : `M${points[0]}h0.01`);
    mark(area, "d", `M${left},${HEIGHT}L${points.join("L")}L${WIDTH},${HEIGHT}Z`);
  }

  return { element, update };
}
