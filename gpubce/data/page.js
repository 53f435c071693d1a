
"use strict";
// A button in each head of a table sorts by that column; what has no value stays at the end.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const sign = descending ? -1 : 1;
      const rows = [...body.rows].map((row) => {
        const cell = row.cells[column];
        return { row, text: cell.textContent, value: Number(cell.dataset.value) };
      });
      const words = head.classList.contains("name");
      rows.sort((a, b) => {
        if (words) return sign * a.text.localeCompare(b.text, undefined, { numeric: true });
        if (Number.isNaN(a.value) || Number.isNaN(b.value)) return Number.isNaN(a.value) - Number.isNaN(b.value);
        return a.value === b.value ? 0 : sign * (a.value < b.value ? -1 : 1);
      });
      body.append(...rows.map((entry) => entry.row));
    });
  });
}
