"use strict";
(() => {
  const tallies = JSON.parse(document.getElementById("tallies").textContent);
  const form = document.querySelector(".controls");
  const slider = document.getElementById("threshold");
  const outlines = document.getElementById("outlines");
  const boxes = [...form.querySelectorAll("[name=class]")];
  const initial = slider.value;
  const pictures = [...document.querySelectorAll(".picture")].map((article) => ({
    article,
    truth: describe(article.querySelectorAll(".truth path")),
    predicted: describe(article.querySelectorAll(".predicted path")),
  }));

  // A cell of the ground truth that nothing finds has no score: it is missed at every threshold.
  function describe(paths) {
    return [...paths].map((path) => ({
      path,
      category: Number(path.dataset.class),
      score: "score" in path.dataset ? Number(path.dataset.score) : -1,
      right: path.dataset.match === "TP",
    }));
  }

  function show() {
    const threshold = Number(slider.value);
    const on = boxes.map((box) => box.checked);
    document.getElementById("threshold-value").value = threshold.toFixed(2);
    document.body.classList.toggle("with-outlines", outlines.checked);
    const total = { shown: 0, tp: 0, missed: 0 };
    for (const { article, truth, predicted } of pictures) {
      const count = { shown: 0, tp: 0, missed: 0 };
      for (const cell of predicted) {
        const visible = on[cell.category] && cell.score >= threshold;
        cell.path.classList.toggle("hidden", !visible);
        count.shown += visible;
        count.tp += visible && cell.right;
      }
      for (const cell of truth) {
        const lost = cell.score < threshold;
        cell.path.classList.toggle("hidden", !on[cell.category]);
        cell.path.classList.toggle("lost", lost);
        count.missed += on[cell.category] && lost;
      }
      article.querySelector(".counts").textContent = sentence(count);
      for (const key of Object.keys(total)) total[key] += count[key];
    }
    document.getElementById("summary").textContent = `On these ${pictures.length} images: ${sentence(total)}`;
    fillTable(Math.round(100 * threshold), on);
  }

  function sentence({ shown, tp, missed }) {
    const [all, right, wrong, lost] = [shown, tp, shown - tp, missed].map((n) => n.toLocaleString("en"));
    return `${all} shown: ${right} TP, ${wrong} FP; ${lost} missed`;
  }

  function fillTable(step, on) {
    const all = { tp: 0, fp: 0, gt: 0 };
    on.forEach((chosen, category) => {
      const from = (counts) => counts[category].slice(step).reduce((sum, n) => sum + n, 0);
      const own = { tp: from(tallies.tp), fp: from(tallies.fp), gt: tallies.gt[category] };
      fillRow(String(category), own, chosen);
      if (chosen) for (const key of Object.keys(all)) all[key] += own[key];
    });
    fillRow("all", all, true);
  }

  function fillRow(name, { tp, fp, gt }, chosen) {
    const row = document.querySelector(`[data-row="${name}"]`);
    const percent = (part, whole) => (whole ? (100 * part / whole).toFixed(1) : "n/a");
    const values = {
      shown: tp + fp, tp, fp, missed: gt - tp,
      precision: percent(tp, tp + fp), recall: percent(tp, gt), f1: percent(2 * tp, tp + fp + gt),
    };
    row.classList.toggle("off", !chosen);
    for (const [key, value] of Object.entries(values)) {
      row.querySelector(`[data-cell="${key}"]`).textContent = value.toLocaleString("en");
    }
  }

  // What is shown stands in the address, as #threshold=.5&off=0,2&truth=1.
  function readAddress() {
    const text = location.hash.slice(1);
    if (!text.includes("=")) return; // a section
    const state = new URLSearchParams(text);
    const threshold = Number(state.get("threshold") ?? initial);
    slider.value = Number.isFinite(threshold) ? threshold : initial;
    const off = (state.get("off") ?? "").split(",");
    for (const box of boxes) box.checked = !off.includes(box.value);
    outlines.checked = state.get("truth") === "1";
  }

  function writeAddress() {
    const off = boxes.filter((box) => !box.checked).map((box) => box.value);
    const state = [`threshold=${slider.value}`];
    if (off.length) state.push(`off=${off.join(",")}`);
    if (outlines.checked) state.push("truth=1");
    location.replace(`#${state.join("&")}`);
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", show);
  form.addEventListener("change", writeAddress);
  addEventListener("hashchange", () => { readAddress(); show(); });

  // Both views of an image show the same part of it.
  for (const { article } of pictures) {
    const width = Number(article.dataset.width), height = Number(article.dataset.height);
    const views = [...article.querySelectorAll(".view")];
    const pointed = article.querySelector(".pointed");
    let zoom = 1, x = 0, y = 0;

    const apply = () => {
      x = Math.min(Math.max(x, 0), width - width / zoom);
      y = Math.min(Math.max(y, 0), height - height / zoom);
      for (const view of views) {
        view.setAttribute("viewBox", `${x} ${y} ${width / zoom} ${height / zoom}`);
        view.classList.toggle("zoomed", zoom > 1);
        view.classList.toggle("large", view.clientWidth * zoom > 4 * width);
      }
    };
    // The point at a share of the view across and down stays where it is.
    const scale = (factor, across = 0.5, down = 0.5) => {
      const next = Math.min(Math.max(zoom * factor, 1), 32);
      x += across * width * (1 / zoom - 1 / next);
      y += down * height * (1 / zoom - 1 / next);
      zoom = next;
      apply();
    };
    const move = (dx, dy) => { x += dx * width / zoom; y += dy * height / zoom; apply(); };
    const all = () => { zoom = 1; apply(); };
    const buttons = { in: () => scale(1.5), out: () => scale(1 / 1.5), all };
    const keys = {
      "+": buttons.in, "=": buttons.in, "-": buttons.out, 0: all,
      ArrowLeft: () => move(-0.1, 0), ArrowRight: () => move(0.1, 0),
      ArrowUp: () => move(0, -0.1), ArrowDown: () => move(0, 0.1),
    };
    for (const button of article.querySelectorAll("[data-zoom]")) {
      button.addEventListener("click", buttons[button.dataset.zoom]);
    }
    for (const view of views) {
      // At its whole size an image leaves the arrow keys to the page.
      view.addEventListener("keydown", (event) => {
        const free = zoom === 1 && event.key.startsWith("Arrow");
        if (free || event.ctrlKey || event.metaKey || !(event.key in keys)) return;
        event.preventDefault();
        keys[event.key]();
      });
      view.addEventListener("wheel", (event) => {
        if (!event.ctrlKey) return;
        event.preventDefault();
        const frame = view.getBoundingClientRect();
        const share = [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
        scale(Math.exp(-event.deltaY / 300), ...share);
      }, { passive: false });
      view.addEventListener("pointerdown", (event) => { if (zoom > 1) view.setPointerCapture(event.pointerId); });
      view.addEventListener("pointermove", (event) => {
        if (view.hasPointerCapture(event.pointerId)) {
          move(-event.movementX / view.clientWidth, -event.movementY / view.clientHeight);
        }
      });
      view.addEventListener("pointerover", (event) => {
        const cell = event.target.dataset;
        if (!("class" in cell)) { pointed.textContent = "\u00a0"; return; }
        const name = boxes[Number(cell.class)].closest("label").textContent.trim();
        const score = "score" in cell ? Number(cell.score).toFixed(2) : null;
        if ("match" in cell) pointed.textContent = `${name}, score ${score}, ${cell.match}`;
        else pointed.textContent = score ? `${name}, found with score ${score}` : `${name}, found by no prediction`;
      });
    }
  }

  readAddress();
  show();
})();
