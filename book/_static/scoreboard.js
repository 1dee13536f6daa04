// The filters of the scoreboard. Without this script there are none, and every claim is shown.
(() => {
  "use strict";

  const board = document.querySelector(".scoreboard");
  if (!board) return;
  const form = board.querySelector("form");
  const cells = [...board.querySelectorAll(".cell")];

  const show = () => {
    const wanted = [...form.querySelectorAll("select")].filter((select) => select.value);
    for (const cell of cells) cell.hidden = wanted.some((select) => cell.dataset[select.name] !== select.value);
    // Chapters and parts in which nothing is left are no help.
    for (const group of board.querySelectorAll(".chapter, .part")) group.hidden = !group.querySelector(".cell:not([hidden])");
    form.querySelector("output").textContent = `${cells.filter((cell) => !cell.hidden).length} of ${cells.length} claims`;
  };

  // An address such as scoreboard.html#score-adam-step-bound opens the claim.
  const open = () => {
    const cell = cells.find((one) => `#${one.id}` === location.hash);
    if (cell) cell.open = true;
  };

  form.hidden = false;
  form.addEventListener("change", show);
  window.addEventListener("hashchange", open);
  show(); // a browser may have kept the choice
  open();
})();
