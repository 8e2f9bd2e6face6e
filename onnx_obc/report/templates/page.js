"use strict";
(() => {
  const table = document.getElementById("layers");
  if (!table) return;
  document.documentElement.classList.add("script");
  const bodies = [...table.tBodies];
  const heads = [...table.tHead.rows[0].cells];

  /* Sorting. What has no value comes last. */
  const value = (body, column) => {
    const cell = body.rows[0].cells[column];
    const text = !cell ? "" : cell.dataset.s !== undefined ? cell.dataset.s : cell.textContent.trim();
    if (text === "" || text === "–") return null;
    if (heads[column].dataset.as === "words") return text.toLowerCase();
    return Number.isNaN(Number(text)) ? null : Number(text);
  };
  const collator = new Intl.Collator("en", { numeric: true });
  const sort = (column, ascending) => {
    const keyed = bodies.map((body, place) => [value(body, column), place, body]);
    keyed.sort(([a, i], [b, j]) => {
      if (a === null || b === null) return (a === null) - (b === null) || i - j;
      const order = typeof a === "string" ? collator.compare(a, b) : a < b ? -1 : a > b ? 1 : 0;
      return (ascending ? order : -order) || i - j;
    });
    table.append(...keyed.map((entry) => entry[2]));
    if (end) show();
    heads.forEach((head, i) => head.setAttribute("aria-sort", i !== column ? "none" : ascending ? "ascending" : "descending"));
  };
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (button) button.addEventListener("click", () => sort(column, head.getAttribute("aria-sort") !== "ascending"));
  });

  /* Filtering. */
  const words = document.getElementById("words");
  const kind = document.getElementById("kind");
  const found = document.getElementById("found");
  const texts = new Map();
  const said = (body) => {
    if (!texts.has(body)) texts.set(body, `${body.dataset.words || ""} ${body.rows[0].textContent}`.toLowerCase());
    return texts.get(body);
  };
  const step = 200; /* rows that are laid out at a time: the others when the table is scrolled that far */
  const asked = new Set(); /* rows that were opened from the strip */
  let most = step;
  const show = () => {
    let shown = 0;
    for (const body of table.tBodies) {
      if (body.hidden) continue;
      shown += 1;
      body.classList.toggle("late", shown > most && !asked.has(body));
    }
  };
  const end = document.getElementById("end");
  if (end && bodies.length > step) {
    new IntersectionObserver((seen) => {
      if (!seen[0].isIntersecting || !table.querySelector(":scope > .late:not([hidden])")) return;
      most += step;
      show();
    }, { root: end.parentElement, rootMargin: "400px" }).observe(end);
  }
  const filter = () => {
    const wanted = words.value.trim().toLowerCase();
    let shown = 0;
    for (const body of bodies) {
      const fits = (!wanted || said(body).includes(wanted))
        && (!kind.value || body.dataset.kinds.split(" ").includes(kind.value));
      if (body.hidden === fits) body.hidden = !fits;
      shown += fits;
    }
    found.textContent = `${shown} of ${bodies.length} layers`;
    if (end) show();
  };
  words.addEventListener("input", filter);
  kind.addEventListener("change", filter);

  /* What a row opens to: made when it is first asked for, from the numbers in the page. */
  const made = (node, attributes, children) => {
    for (const [name, set] of Object.entries(attributes || {})) node.setAttribute(name, set);
    node.append(...(children || []).filter((child) => child !== null));
    return node;
  };
  const html = (tag, attributes, ...children) => made(document.createElement(tag), attributes, children);
  const drawings = made(document.createElement("template"));
  drawings.innerHTML = "<svg></svg>";
  const space = drawings.content.firstChild.namespaceURI;
  const svg = (tag, attributes, ...children) => made(document.createElementNS(space, tag), attributes, children);
  const shown = (number) => {
    if (number === null || number === undefined) return "–";
    const short = Number(number.toPrecision(3));
    const text = short && Math.abs(short) < 1e-4 ? short.toExponential().replace("+", "") : String(short);
    return text.replace(/-/g, "−");
  };

  const losses = [["rounding, magnitude", "m0"], ["this solution", "m2"], ["greedy", "m1"], ["refined", "m2"], ["lower bound", "m3"]];
  const bars = (run, from, to) => {
    const part = run.loss.slice(from, to);
    const most = Math.max(...part.map((loss) => loss || 0)) || 1;
    const rows = part.map((loss, i) => (loss === null ? null : html("tr", {},
      html("th", { scope: "row" }, losses[from + i][0]),
      html("td", {}, svg("svg", { class: "measure", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
        svg("rect", { class: losses[from + i][1], x: 0, y: 0, width: Math.max(100 * loss / most, 0.4), height: 8 }))),
      html("td", {}, shown(run.energy ? loss / run.energy : loss)))));
    return html("table", { class: "losses" }, html("tbody", {}, ...rows));
  };
  const lossFigure = (run) => html("figure", {}, bars(run, 0, 2),
    html("figcaption", {}, run.energy ? "Layer loss as a share of ‖WX‖²" : "Layer loss"), bars(run, 2, 5),
    html("figcaption", {}, "The same on the damped Hessian, which is solved on"));

  const STEPS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  const histogram = ([low, high, bins], about, marks) => {
    const width = 340, height = 96, floor = 76;
    const x = (at) => (width * (at - low)) / (high - low);
    const each = width / bins.length;
    const drawn = [...bins].map((bin, i) => {
      const up = (floor - 4) * STEPS.indexOf(bin) / (STEPS.length - 1);
      return up ? `M${(i * each).toFixed(1)} ${floor}v${(-up).toFixed(1)}h${(each * 0.86).toFixed(1)}V${floor}z` : "";
    });
    const label = (at, text, anchor) => svg("text", { x: at, y: height - 5, "text-anchor": anchor }, text);
    const zero = low < 0 && high > 0 && x(0) > 60 && x(0) < width - 60 ? label(x(0), "0", "middle") : null;
    return svg("svg", { class: "plot histogram", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": about },
      ...marks.below(x, floor), svg("path", { class: "bins", d: drawn.join("") }), ...marks.above(x, floor),
      svg("path", { class: "grid", d: `M0 ${floor}H${width}` }), label(0, shown(low), "start"), zero, label(width, shown(high), "end"));
  };
  const captioned = (drawing, ...text) => html("figure", {}, drawing, html("figcaption", {}, ...text));

  const weightFigure = (weight, run) => {
    if (!run.grid) return captioned(histogram(weight, "histogram of the weight", { below: () => [], above: () => [] }), "Weight, dense. Heights: logarithm of the counts");
    const [scale, zero, bits] = run.grid;
    const levels = Array.from({ length: 2 ** bits }, (_, code) => (code - zero) * scale).filter((at) => at >= weight[0] && at <= weight[1]);
    const few = 2 ** bits <= 32;
    const above = (x, floor) => (few
      ? [svg("path", { class: "code", d: levels.map((at) => `M${x(at).toFixed(1)} 0V${floor}`).join("") })]
      : levels.length ? [svg("path", { class: "code", d: `M${x(levels[0]).toFixed(1)} ${floor + 3}H${Math.max(x(levels[levels.length - 1]), x(levels[0]) + 1).toFixed(1)}` })] : []);
    const spread = run.scales[0] === run.scales[1] ? "" : ` (${shown(run.scales[0])} … ${shown(run.scales[1])} over all rows)`;
    return captioned(histogram(weight, "histogram of the weight, with the values that a row may take", { below: () => [], above }),
      `Weight, dense. ${few ? "Lines" : "Line below"}: the ${2 ** bits} values of the row with the median step, ${shown(scale)}${spread}. Heights: logarithm of the counts`);
  };

  const inputFigure = ([name, bins, range]) => {
    const below = (x, floor) => (range ? [svg("rect", { class: "inside", x: Math.max(x(range[0]), 0), y: 0, width: Math.max(Math.min(x(range[1]), 340) - Math.max(x(range[0]), 0), 1), height: floor })] : []);
    const spans = range ? `; its integers span ${shown(range[0])} … ${shown(range[1])}, shaded` : "";
    return captioned(histogram(bins, "histogram of the input", { below, above: () => [] }), `Input ${name}: ${shown(bins[0])} … ${shown(bins[1])} seen${spans}`);
  };

  const island = document.getElementById("data");
  let data = null;
  const layerOf = (row) => {
    data = data || JSON.parse(island.textContent);
    return data.layers[Number(row)];
  };
  const build = (body) => {
    const layer = layerOf(body.dataset.row);
    const parts = layer.name.length > 80 ? [html("p", { class: "whole" }, layer.name)] : [];
    layer.runs.forEach((run, i) => {
      if (data.names.length) parts.push(html("h3", {}, data.names[i]));
      if (!run) {
        parts.push(html("p", {}, `Left as it is: ${layer.left[i] || "no reason is known"}`));
        return;
      }
      const facts = run.facts.flatMap((said, j) => (said ? [html("dt", {}, data.terms[j]), html("dd", {}, said)] : []));
      const notes = run.notes.map((note) => html("li", {}, note));
      parts.push(html("div", { class: "opened" }, html("dl", {}, ...facts),
        lossFigure(run),
        layer.weight ? weightFigure(layer.weight, run) : null, run.input ? inputFigure(run.input) : null));
      if (notes.length) parts.push(html("ul", { class: "notes" }, ...notes));
    });
    const more = html("tr", { class: "more shut" }, html("td", { colspan: heads.length }, html("div", { class: "lazy" }, ...parts)));
    body.append(more);
    return more;
  };

  const cells = (body) => document.querySelectorAll(`.strip [data-row="${Number(body.dataset.row)}"]`);
  const open = (body, wanted) => {
    const button = body.querySelector(".open-row");
    const more = body.querySelector(":scope > .more") || (island ? build(body) : null);
    if (!button || !more) return;
    const shut = more.classList.toggle("shut", wanted === undefined ? undefined : !wanted);
    button.setAttribute("aria-expanded", String(!shut));
    if (island) cells(body).forEach((cell) => cell.classList.toggle("on", !shut));
  };
  for (const body of bodies) {
    const button = body.querySelector(".open-row");
    const more = body.querySelector(":scope > .more");
    if (more) more.classList.add("shut");
    if (button && (more || island)) button.setAttribute("aria-expanded", "false");
  }
  table.addEventListener("click", (event) => {
    const button = event.target.closest(".open-row");
    if (button) open(button.closest("tbody"));
  });
  filter();

  /* The strip of layers: one place in the order of tabs, arrow keys within. */
  const strips = [...document.querySelectorAll(".strip")];
  const pointed = document.getElementById("pointed");
  const rows = new Map(bodies.map((body) => [body.dataset.row, body]));
  const reveal = (cell) => {
    const body = rows.get(cell.dataset.row);
    if (!body) return;
    if (body.hidden) {
      words.value = kind.value = "";
      filter();
    }
    asked.add(body);
    body.classList.remove("late");
    open(body, true);
    body.scrollIntoView({ block: "nearest" });
    body.querySelector(".open-row").focus({ preventScroll: true });
  };
  strips.forEach((strip, number) => {
    const all = [...strip.children];
    const named = (cell) => {
      const layer = layerOf(cell.dataset.row), run = layer.runs[number];
      const loss = run && run.energy ? `, relative loss ${shown(run.loss[1] / run.energy)}` : "";
      cell.title = `${layer.name.length > 100 ? `${layer.name.slice(0, 99)}…` : layer.name}: ${run ? `${run.facts[0]}${loss}, ${run.facts[2]}` : "left as it is"}`;
    };
    if (!strip.classList.contains("fine")) all.forEach(named);
    const across = () => all.findIndex((cell) => cell.offsetTop !== all[0].offsetTop);
    strip.addEventListener("click", (event) => {
      const cell = event.target.closest("button");
      if (cell) reveal(cell);
    });
    const tell = (event) => {
      const cell = event.target.closest("button");
      if (cell && !cell.title) named(cell);
      if (cell) pointed.textContent = `${Number(cell.dataset.row) + 1} of ${all.length}. ${cell.title}`;
    };
    strip.addEventListener("mouseover", tell);
    strip.addEventListener("focusin", tell);
    strip.addEventListener("keydown", (event) => {
      const here = all.indexOf(event.target);
      const line = across() < 0 ? all.length : across();
      const moves = { ArrowLeft: here - 1, ArrowRight: here + 1, ArrowUp: here - line, ArrowDown: here + line, Home: 0, End: all.length - 1 };
      const next = all[moves[event.key]];
      if (here < 0 || !next) return;
      event.preventDefault();
      all[here].tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  });
  for (const choice of document.querySelectorAll(".switch input")) {
    choice.addEventListener("change", () => {
      strips.forEach((strip) => { strip.dataset.by = choice.value; });
      document.querySelectorAll(".legend").forEach((legend) => { legend.hidden = legend.dataset.for !== choice.value; });
    });
  }
})();
