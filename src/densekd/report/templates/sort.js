"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  const body = table.tBodies[0];
  heads.forEach((head, place) => {
    const numeric = head.classList.contains("n");
    head.setAttribute("aria-sort", "none");
    head.querySelector("button").addEventListener("click", () => {
      const order = head.getAttribute("aria-sort");
      const down = order === "none" ? numeric : order === "ascending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[place];
        return numeric ? parseFloat(cell.dataset.key) : cell.textContent.trim();
      };
      const sign = down ? -1 : 1;
      const compare = (one, other) => {
        const a = key(one), b = key(other);
        if (!numeric) return sign * a.localeCompare(b, "en", { numeric: true });
        // Rows without a number stay at the end, whichever way.
        if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
        return sign * (a - b);
      };
      body.append(...Array.from(body.rows).sort(compare));
    });
  });
}
