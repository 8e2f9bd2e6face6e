"use strict";
(() => {
  const table = document.getElementById("layers");
  if (!table) return;
  document.documentElement.classList.add("script");
  const bodies = [...table.tBodies];
  const heads = [...table.tHead.rows[0].cells];
  const value = (body, column) => {
    const cell = body.rows[0].cells[column];
    const text = cell && cell.dataset.s !== undefined ? cell.dataset.s : "";
    return text === "" ? null : heads[column].dataset.as === "words" ? text.toLowerCase() : Number(text);
  };
  const sort = (column, ascending) => {
    const keyed = bodies.map((body, place) => [value(body, column), place, body]);
    keyed.sort(([a, i], [b, j]) => {
      if (a === null || b === null) return (a === null) - (b === null) || i - j;
      const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a < b ? -1 : a > b ? 1 : 0;
      return (ascending ? order : -order) || i - j;
    });
    table.append(...keyed.map((entry) => entry[2]));
    heads.forEach((head, i) => head.setAttribute("aria-sort", i !== column ? "none" : ascending ? "ascending" : "descending"));
  };
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (button) button.addEventListener("click", () => sort(column, head.getAttribute("aria-sort") !== "ascending"));
  });
  const words = document.getElementById("words");
  const verdict = document.getElementById("verdict");
  const found = document.getElementById("found");
  const filter = () => {
    const wanted = words.value.trim().toLowerCase();
    let shown = 0;
    for (const body of bodies) {
      const fits = body.dataset.words.toLowerCase().includes(wanted)
        && (!verdict.value || body.dataset.verdicts.split(" ").includes(verdict.value));
      body.hidden = !fits;
      shown += fits;
    }
    found.textContent = `${shown} of ${bodies.length} layers`;
  };
  words.addEventListener("input", filter);
  verdict.addEventListener("change", filter);
  for (const body of bodies) {
    const button = body.querySelector(".open-row");
    const more = body.querySelector(".more");
    if (!button || !more) continue;
    more.classList.add("shut");
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => {
      const shut = more.classList.toggle("shut");
      button.setAttribute("aria-expanded", String(!shut));
    });
  }
  filter();
})();
