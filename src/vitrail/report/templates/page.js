"use strict";
// Shows the images of a cell of the confusion matrix, and the class at the pointer in the embedding map.
// Names are only set as text, never as HTML.
(() => {
  const MAX_POINTER_DISTANCE = 0.03; // fraction of the width of the embedding map

  const data = JSON.parse(document.getElementById("data").textContent);
  const dialog = document.getElementById("cell");
  const title = document.getElementById("cell-title");
  const description = document.getElementById("cell-description");
  const list = document.getElementById("cell-images");
  const tilesPerSheet = data.columns * Math.max(1, ...data.rows);

  const percent = (fraction) => `${(100 * fraction).toFixed(1)}%`;

  function span(className, text) {
    const element = document.createElement("span");
    element.className = className;
    element.textContent = text;
    return element;
  }

  function thumbnail(number, label) {
    const sheet = Math.floor(number / tilesPerSheet);
    const inside = number % tilesPerSheet;
    const row = Math.floor(inside / data.columns);
    const column = inside % data.columns;
    const lastColumn = data.columns - 1;
    const lastRow = data.rows[sheet] - 1;
    const x = lastColumn ? (100 * column) / lastColumn : 0;
    const y = lastRow ? (100 * row) / lastRow : 0;
    const element = span(`thumb images-${sheet}`, "");
    element.setAttribute("role", "img");
    element.setAttribute("aria-label", label);
    element.style.backgroundPosition = `${x}% ${y}%`;
    return element;
  }

  function describeCell(cell, isCorrect) {
    const total = `${cell.images.toLocaleString("en")} image${cell.images === 1 ? "" : "s"}`;
    const shown = cell.thumbnails.length === cell.images ? "" : `, ${cell.thumbnails.length} of them shown`;
    const order = isCorrect ? ", lowest confidence first" : ", highest confidence first";
    return total + shown + (cell.images > 1 ? order : "");
  }

  function imageItem(number, predicted) {
    const [path, , , probability] = data.images[number];
    const name = path.split("/").pop();
    const fileName = span("path", name);
    fileName.title = path;
    const item = document.createElement("li");
    item.append(
      thumbnail(number, `${name}: ${predicted} ${percent(probability)}`),
      span("confidence", percent(probability)),
      fileName,
    );
    return item;
  }

  function openCell(cell) {
    const truth = data.classes[cell.true];
    const predicted = data.classes[cell.predicted];
    const isCorrect = cell.true === cell.predicted;
    title.textContent = isCorrect ? `${truth}, correct` : `${truth} predicted as ${predicted}`;
    description.textContent = describeCell(cell, isCorrect);
    list.replaceChildren(...cell.thumbnails.map((number) => imageItem(number, predicted)));
    dialog.showModal();
    list.scrollTop = 0;
  }

  for (const button of document.querySelectorAll("[data-cell]")) {
    button.addEventListener("click", () => openCell(data.cells[Number(button.dataset.cell)]));
  }
  document.getElementById("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });

  const stage = document.getElementById("stage");
  const pointed = document.getElementById("pointed");

  function nearestPoint(x, y, aspectRatio) {
    let nearest = null;
    let least = MAX_POINTER_DISTANCE ** 2;
    for (const point of data.points) {
      const distance = (point[0] - x) ** 2 + ((point[1] - y) * aspectRatio) ** 2;
      if (distance < least) {
        least = distance;
        nearest = point;
      }
    }
    return nearest;
  }

  stage.addEventListener("pointermove", (event) => {
    const box = stage.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width;
    const y = (event.clientY - box.top) / box.height;
    const point = nearestPoint(x, y, box.height / box.width);
    if (point === null) {
      pointed.textContent = "\u00a0";
      return;
    }
    const [, , truth, predicted] = point;
    const isCorrect = truth === predicted;
    pointed.textContent = data.classes[truth] + (isCorrect ? "" : `, predicted as ${data.classes[predicted]}`);
  });

  document.documentElement.classList.add("scripted");
})();
