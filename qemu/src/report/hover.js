(() => {
  const plot = document.querySelector(".heat"), out = plot && plot.querySelector("output");
  if (!out) return;
  const start = Number(plot.dataset.start), bytes = Number(plot.dataset.bytes), until = Number(plot.dataset.until);
  plot.addEventListener("pointermove", event => {
    const box = plot.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width, y = 1 - (event.clientY - box.top) / box.height;
    const address = start + Math.floor(Math.min(Math.max(y, 0), 1) * bytes / 4096) * 4096;
    out.textContent = "0x" + address.toString(16) + ", " + (Math.min(Math.max(x, 0), 1) * until).toFixed(1) + " s";
  });
  plot.addEventListener("pointerleave", () => { out.textContent = ""; });
})();
