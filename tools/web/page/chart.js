// Lines over two logarithmic axes, as SVG.

const COLORS = ["#0b7fab", "#d1662b", "#3f8f4f", "#8f5bb0", "#b08a1e"];
const FRAME = { left: 70, right: 620, top: 15, bottom: 350 };

function node(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

/** Draws `lines` ({ name, points: [[x, y], …] }) into `svg`, with their names in `legend`. */
export function chart(svg, legend, lines) {
  const all = lines.flatMap((line) => line.points);
  const range = (values) => [Math.min(...values), Math.max(...values)];
  const [left, right] = range(all.map(([x]) => x));
  let [low, high] = range(all.map(([, y]) => y));
  [low, high] = [10 ** Math.floor(Math.log10(low)), 10 ** Math.ceil(Math.log10(high))];
  const place = (value, from, to, start, end) =>
    start + (end - start) * (to > from ? Math.log(value / from) / Math.log(to / from) : 0.5);
  const x = (value) => place(value, left, right, FRAME.left + 20, FRAME.right - 20);
  const y = (value) => place(value, low, high, FRAME.bottom, FRAME.top);

  svg.replaceChildren();
  for (let tick = low; tick <= high * 1.01; tick *= 10) {
    svg.append(node("line", { class: "axis", x1: FRAME.left, x2: FRAME.right, y1: y(tick), y2: y(tick) }));
    svg.append(node("text", { x: FRAME.left - 8, y: y(tick) + 4, "text-anchor": "end" }, `${+tick.toPrecision(1)} ms`));
  }
  for (let tick = left; tick <= right; tick *= 2) {
    svg.append(node("text", { x: x(tick), y: FRAME.bottom + 22, "text-anchor": "middle" }, tick));
  }
  svg.append(node("text", { x: (FRAME.left + FRAME.right) / 2, y: 395, "text-anchor": "middle" }, "tokens"));
  legend.replaceChildren();
  lines.forEach(({ name, points }, i) => {
    const stroke = COLORS[i % COLORS.length];
    svg.append(node("polyline", { stroke, points: points.map(([a, b]) => `${x(a)},${y(b)}`).join(" ") }));
    for (const [a, b] of points) svg.append(node("circle", { cx: x(a), cy: y(b), r: 4, fill: stroke }));
    const item = document.createElement("li");
    item.textContent = name;
    item.style.setProperty("--color", stroke);
    legend.append(item);
  });
}
