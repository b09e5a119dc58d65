"use strict";
// The images of a confusion matrix's cells, by mouse and by keyboard.
for (const box of document.querySelectorAll("[data-confusion]")) {
  const data = JSON.parse(box.querySelector(".cell-data").textContent);
  const shown = box.querySelector(".cell-images");
  const buttons = [...box.querySelectorAll("[data-cell]")];
  const cells = [...box.querySelectorAll(".matrix [data-cell]")];
  const width = Math.round(Math.sqrt(cells.length));

  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text) element.textContent = text;
    return element;
  };

  const card = (sample) => {
    const [name, confidence, uri, small] = data.images[sample];
    const item = make("li", "card");
    const picture = make("div", "picture");
    if (uri) {
      const image = make("img", small ? "small" : "");
      image.src = uri;
      image.alt = name;
      picture.append(image);
    } else {
      picture.append(make("span", "none", "no picture"));
    }
    const file = make("div", "file", name);
    file.title = data.folder + name;
    item.append(picture, make("div", "how", confidence), file);
    return item;
  };

  const open = (key) => {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.cell === key));
    const cell = data.cells[key];
    shown.replaceChildren();
    if (!cell) {
      shown.append(make("p", "fine", "No images in this cell."));
      return;
    }
    const title = make("h3", "", cell.title);
    const many = cell.images.length < cell.total ? `${cell.images.length} of ${cell.total} images` : `${cell.total} image${cell.total === 1 ? "" : "s"}`;
    title.append(" ", make("span", "count", many));
    const list = make("ul", "gallery");
    list.append(...cell.images.map(card));
    shown.append(title, list);
  };

  for (const button of buttons) {
    button.addEventListener("click", () => {
      open(button.dataset.cell);
      shown.scrollIntoView({ block: "nearest" }); // below a long list they would not be seen
    });
  }

  // One cell can be reached with Tab, the others from it with the arrow keys.
  if (cells.length) {
    const start = cells.find((cell) => cell.dataset.cell === shown.dataset.startsAt) || cells[0];
    start.tabIndex = 0;
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    box.querySelector(".matrix").addEventListener("keydown", (event) => {
      const place = cells.indexOf(event.target);
      const move = moves[event.key];
      if (place < 0 || !move) return;
      event.preventDefault();
      const row = Math.min(width - 1, Math.max(0, Math.floor(place / width) + move[0]));
      const column = Math.min(width - 1, Math.max(0, (place % width) + move[1]));
      const next = cells[row * width + column];
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }
  if (shown.dataset.startsAt) open(shown.dataset.startsAt);
}

// A link to a run opens it; on paper all is open.
const openTarget = () => {
  const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) target.open = true;
};
addEventListener("hashchange", openTarget);
openTarget();
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const details of closed) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of closed) details.open = false;
});
