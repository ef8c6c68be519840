// Arrow keys: up and down between the rows of a list, left and right between pages. All of it is links, too.
addEventListener("keydown", (e) => {
  if (e.altKey || e.ctrlKey || e.metaKey || e.shiftKey || e.target.closest("input, select, summary, .scroll:focus")) return;
  if (e.key === "ArrowLeft" || e.key === "ArrowRight") {
    const page = document.querySelector(`a[accesskey="${e.key === "ArrowLeft" ? "b" : "n"}"]`);
    if (page) page.click();
  }
  if (e.key !== "ArrowDown" && e.key !== "ArrowUp") return;
  const rows = [...document.querySelectorAll("table.rows tbody tr")];
  const at = rows.findIndex((row) => row.contains(document.activeElement));
  if (at < 0 && document.activeElement !== document.body) return;
  const seen = rows.findIndex((row) => row.getBoundingClientRect().top > 50);
  const row = rows[at < 0 ? seen : e.key === "ArrowDown" ? at + 1 : at - 1];
  if (!row) return;
  e.preventDefault();
  row.querySelector("a").focus({ preventScroll: true });
  row.scrollIntoView({ block: "center" });
});
