"use strict";
// Embeds the charts when they come into sight, colours them by the page's theme, and obeys the boxes and buttons.
(() => {
  const root = document.documentElement;
  const items = JSON.parse(document.getElementById("data").textContent);
  const plots = new Map();
  const hidden = new Set();

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  function shown(kind, run) {
    const kinds = root.dataset.kinds;
    return (kinds === "both" || kind === "same" || kinds === kind) && !hidden.has(run);
  }

  function update(id, plot) {
    for (const renderer of plot.renderers) {
      const [, kind, run] = renderer.tags;
      renderer.visible = shown(kind, id === "curves" ? run : -1);
    }
  }

  function paint(plot) {
    const [text, soft, line] = [colour("--text"), colour("--soft"), colour("--line")];
    for (const axis of [...plot.below, ...plot.left]) {
      axis.setv({
        axis_label_text_color: text, major_label_text_color: text, axis_line_color: soft,
        major_tick_line_color: soft, minor_tick_line_color: null,
      });
    }
    for (const grid of plot.center) {
      if (grid.grid_line_color !== null) grid.grid_line_color = line;
    }
    for (const renderer of plot.renderers) {
      const [part, , run] = renderer.tags;
      const own = { value: colour(`--run-${run % 8}`) };
      if (part === "line") renderer.glyph.line_color = own;
      else if (part === "band") renderer.glyph.fill_color = own.value;
      else renderer.glyph.setv({ fill_color: own, line_color: own });
    }
  }

  async function embed(id) {
    if (plots.has(id)) return;
    plots.set(id, null);
    await Bokeh.embed.embed_item(items[id], id);
    const plot = Bokeh.documents.at(-1).roots()[0];
    plots.set(id, plot);
    paint(plot);
    update(id, plot);
    document.getElementById(id).dataset.ready = "true";
  }

  const ready = () => [...plots].filter(([, plot]) => plot !== null);

  for (const button of document.querySelectorAll("input[name=kinds]")) {
    button.addEventListener("change", () => {
      root.dataset.kinds = button.value;
      for (const [id, plot] of ready()) update(id, plot);
    });
    if (button.checked) root.dataset.kinds = button.value;
  }

  for (const box of document.querySelectorAll("input[data-run]")) {
    const obey = () => {
      const run = Number(box.dataset.run);
      if (box.checked) hidden.delete(run);
      else hidden.add(run);
      for (const row of document.querySelectorAll(`[data-of-run="${run}"]`)) row.hidden = !box.checked;
      for (const [id, plot] of ready()) update(id, plot);
    };
    box.addEventListener("change", obey);
    obey();
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const [, plot] of ready()) paint(plot);
  });

  // One after the other: the last document is then the one just embedded.
  let queue = Promise.resolve();
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      queue = queue.then(() => embed(entry.target.id));
    }
  }, { rootMargin: "300px" });
  for (const chart of document.querySelectorAll(".chart")) seen.observe(chart);
})();
