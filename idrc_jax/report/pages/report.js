"use strict";
// Embeds the charts when they come into sight, colours them by the page's theme, obeys the boxes and buttons, and draws
// the band of the run that is pointed at.
(() => {
  const root = document.documentElement;
  let loading = null; // of the charts' data, once their library is there
  const plots = new Map();
  const widths = new Map(); // of the curves' lines, as they came
  const hidden = new Set();
  const OF_RUNS = ["curves", "probabilities"]; // the charts with a line a run
  const boxes = [...document.querySelectorAll("input[data-run]")];
  let pointed = 0; // the run whose band is drawn; it stays until another is pointed at

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  function shown(kind, run) {
    const kinds = root.dataset.kinds;
    return (kinds === "both" || kind === "same" || kinds === kind) && !hidden.has(run);
  }

  function update(id, plot) {
    for (const renderer of plot.renderers) {
      const [part, kind, run] = renderer.tags;
      if (OF_RUNS.includes(id)) {
        renderer.visible = shown(kind, run) && (part === "line" || run === pointed);
        if (part === "line") renderer.glyph.line_width = { value: widths.get(renderer) + (run === pointed ? 1.5 : 0) };
      } else renderer.visible = shown(kind, -1);
    }
  }

  function pointAt(run) {
    if (run === pointed || hidden.has(run)) return;
    pointed = run;
    const box = boxes.find((one) => Number(one.dataset.run) === run);
    document.getElementById("pointed").textContent = box.parentElement.textContent.trim();
    for (const id of OF_RUNS) {
      if (plots.get(id)) update(id, plots.get(id));
    }
  }

  // All curves under the mouse are told one after the other: the run pointed at stays if it is one of them.
  function follow(plot) {
    const under = new Set();
    for (const renderer of plot.renderers) {
      const [part, , run] = renderer.tags;
      if (part !== "line") continue;
      widths.set(renderer, renderer.glyph.line_width.value);
      renderer.data_source.inspect.connect(() => {
        if (renderer.data_source.inspected.is_empty()) return;
        if (under.size === 0) {
          requestAnimationFrame(() => {
            if (!under.has(pointed)) pointAt(Math.min(...under));
            under.clear();
          });
        }
        under.add(run);
      });
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

  async function unpacked(id) {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (one) => one.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

  async function load() {
    const library = document.createElement("script");
    library.textContent = await unpacked("library");
    document.body.append(library);
    return JSON.parse(await unpacked("data"));
  }

  async function embed(id) {
    if (plots.has(id)) return;
    plots.set(id, null);
    loading ??= load();
    const items = await loading;
    await Bokeh.embed.embed_item(items[id], id);
    const plot = Bokeh.documents.at(-1).roots()[0];
    plots.set(id, plot);
    if (OF_RUNS.includes(id)) follow(plot);
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

  function obey() {
    for (const box of boxes) {
      const run = Number(box.dataset.run);
      if (box.checked) hidden.delete(run);
      else hidden.add(run);
      for (const row of document.querySelectorAll(`[data-of-run="${run}"]`)) row.hidden = !box.checked;
    }
    const left = boxes.filter((box) => box.checked);
    if (hidden.has(pointed) && left.length) pointAt(Number(left[0].dataset.run));
    if (boxes.length) document.getElementById("shown").textContent = left.length;
    const all = document.getElementById("all");
    if (all) all.textContent = left.length < boxes.length ? "Show all" : `Show the first ${all.dataset.first}`;
    for (const [id, plot] of ready()) update(id, plot);
  }

  for (const box of boxes) {
    const point = () => pointAt(Number(box.dataset.run));
    box.addEventListener("change", () => { obey(); point(); });
    box.addEventListener("focus", point);
    box.parentElement.addEventListener("mouseenter", point);
  }
  document.getElementById("all")?.addEventListener("click", (event) => {
    const every = boxes.some((box) => !box.checked);
    for (const box of boxes) box.checked = every || Number(box.dataset.run) < Number(event.target.dataset.first);
    obey();
  });
  obey();

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const [, plot] of ready()) paint(plot);
  });

  // One after the other: the last document is then the one just embedded.
  let queue = Promise.resolve();
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      queue = queue.then(() => embed(entry.target.id)).catch((error) => {
        const needs = window.DecompressionStream ? "" : "; it needs a browser of 2023 or later";
        entry.target.textContent = `This chart could not be drawn (${error.message})${needs}.`;
        console.error(error);
      });
    }
  }, { rootMargin: "300px" });
  for (const chart of document.querySelectorAll(".chart")) seen.observe(chart);
})();
