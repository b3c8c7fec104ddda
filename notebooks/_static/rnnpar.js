// What scrolls sideways on a narrow page can be reached by the keyboard too.
document.addEventListener("DOMContentLoaded", () => {
  for (const box of document.querySelectorAll("article table, article pre, .table-wrapper, .cell_output, article p"))
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
});
