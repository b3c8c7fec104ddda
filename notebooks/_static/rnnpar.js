// Columns of words are told from columns of numbers. Counted from the right: a cell on the left may span several rows.
function alignColumns(table) {
  const rows = [...table.rows];
  for (let k = 1; k <= Math.max(...rows.map((row) => row.cells.length)); k++) {
    const cells = rows.map((row) => row.cells[row.cells.length - k]).filter((cell) => cell);
    const texts = cells.filter((cell) => cell.closest("tbody")).map((cell) => cell.textContent.trim());
    if (!texts.some((text) => /^[a-z]+[\s/_a-z]/i.test(text) && text != "NaN")) continue;
    const kinds = texts.some((text) => text.length > 40) ? ["words", "sentences"] : ["words"];
    cells.forEach((cell) => cell.classList.add(...kinds));
  }
}

// What scrolls sideways on a narrow page can be reached by the keyboard too.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("table.dataframe").forEach(alignColumns);
  for (const box of document.querySelectorAll("article table, article pre, .table-wrapper, .cell_output, article p"))
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
});
