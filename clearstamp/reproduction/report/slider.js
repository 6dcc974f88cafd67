(function () {
  const root = document.getElementById("SLIDER");
  if (!root || root.dataset.ready) return;
  root.dataset.ready = "1";
  const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const [image, range, text, button] = ["img", "input", "output", "button"].map(tag => root.querySelector(tag));
  let timer = null;
  function show(i) {
    range.value = i;
    image.src = data.frames[i];
    image.alt = data.alt + ", " + data.labels[i];
    text.textContent = data.labels[i];
    range.setAttribute("aria-valuetext", data.labels[i]);
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    button.textContent = "\u25b6";
    button.setAttribute("aria-label", "Play");
  }
  function play() {
    if (+range.value + 1 >= data.frames.length) show(0);
    button.textContent = "\u275a\u275a";
    button.setAttribute("aria-label", "Pause");
    timer = setInterval(() => +range.value + 1 < data.frames.length ? show(+range.value + 1) : stop(), 450);
  }
  range.addEventListener("input", () => { stop(); show(+range.value); });
  button.addEventListener("click", () => timer ? stop() : play());
  root.addEventListener("keydown", event => event.stopPropagation()); // JupyterLab takes the arrow keys otherwise
  show(data.start);
  range.disabled = button.disabled = false;
})();
