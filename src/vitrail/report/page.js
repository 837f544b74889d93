"use strict";
// Opens the images behind a cell of the confusion matrix, and says what lies under the pointer in the map of alike images.
// Names are only ever set as text.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dialog = document.getElementById("cell");
  const title = document.getElementById("cell-title");
  const about = document.getElementById("cell-about");
  const list = document.getElementById("cell-images");
  const perSheet = data.columns * Math.max(1, ...data.rows);

  const percent = (part) => `${(100 * part).toFixed(1)} %`;

  function thumbnail(number, says) {
    const sheet = Math.floor(number / perSheet), inside = number % perSheet;
    const row = Math.floor(inside / data.columns), column = inside % data.columns;
    const across = data.columns - 1, down = data.rows[sheet] - 1;
    const span = document.createElement("span");
    span.className = `thumb images-${sheet}`;
    span.setAttribute("role", "img");
    span.setAttribute("aria-label", says);
    span.style.backgroundPosition =
      `${across ? (100 * column) / across : 0}% ${down ? (100 * row) / down : 0}%`;
    return span;
  }

  function open(cell) {
    const truth = data.classes[cell.true], answer = data.classes[cell.predicted];
    const right = cell.true === cell.predicted;
    title.textContent = right ? `${truth}, found` : `${truth} taken for ${answer}`;
    const all = cell.shown.length === cell.images;
    const order = right ? "the least sure first" : "the surest first";
    about.textContent = `${cell.images.toLocaleString("en")} image${cell.images > 1 ? "s" : ""}` +
      (all ? "" : `, ${cell.shown.length} of them here`) + (cell.images > 1 ? `, ${order}` : "");
    list.replaceChildren(...cell.shown.map((number) => {
      const [path, , , probability] = data.images[number];
      const name = path.split("/").pop();
      const item = document.createElement("li");
      const said = document.createElement("span");
      said.className = "path";
      said.title = path;
      said.textContent = name;
      const sure = document.createElement("span");
      sure.className = "sure";
      sure.textContent = percent(probability);
      item.append(thumbnail(number, `${name}: ${answer} ${percent(probability)}`), sure, said);
      return item;
    }));
    dialog.showModal();
    list.scrollTop = 0;
  }

  for (const button of document.querySelectorAll("[data-cell]")) {
    button.addEventListener("click", () => open(data.cells[Number(button.dataset.cell)]));
  }
  document.getElementById("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  const stage = document.getElementById("stage");
  const pointed = document.getElementById("pointed");
  stage.addEventListener("pointermove", (event) => {
    const box = stage.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
    const ratio = box.height / box.width;
    let best = null, least = 0.03 ** 2;
    for (const point of data.points) {
      const away = (point[0] - x) ** 2 + ((point[1] - y) * ratio) ** 2;
      if (away < least) { least = away; best = point; }
    }
    pointed.textContent = best === null ? "\u00a0"
      : best[2] === best[3] ? data.classes[best[2]] : `${data.classes[best[2]]}, taken for ${data.classes[best[3]]}`;
  });
  document.documentElement.classList.add("scripted");
})();
