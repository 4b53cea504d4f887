"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);

async function load() {
  const packed = document.getElementById("library").textContent;
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);
}

function legend(id, plot) {
  const list = document.getElementById("legend-" + id);
  if (!list) return;
  const groups = new Map();
  plot.data.forEach((trace, at) => {
    const group = trace.legendgroup || trace.name;
    if (!group) return;
    const known = groups.get(group) || { traces: [], colour: "" };
    known.traces.push(at);
    if (trace.name) Object.assign(known, { name: trace.name, colour: trace.line.color });
    groups.set(group, known);
  });
  const unescape = (text) => new DOMParser().parseFromString(text, "text/html").body.textContent;
  for (const { name, colour, traces } of groups.values()) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const mark = document.createElement("i");
    mark.style.background = colour;
    button.setAttribute("aria-pressed", "true");
    button.append(mark, unescape(name));
    button.onclick = () => {
      const hidden = button.classList.toggle("hidden");
      button.setAttribute("aria-pressed", String(!hidden));
      Plotly.restyle(plot, { visible: !hidden }, traces);
    };
    item.append(button);
    list.append(item);
  }
}

async function draw() {
  await load();
  const touch = matchMedia("(pointer: coarse)").matches;
  for (const [id, { data, layout }] of Object.entries(figures)) {
    if (touch) layout.dragmode = false; // a finger scrolls the page
    const plot = await Plotly.newPlot(id, data, layout, { displayModeBar: false, responsive: true });
    legend(id, plot);
  }
  document.documentElement.classList.add("drawn");
}

// On paper everything is open, and plots are drawn for its width.
const plots = () => document.querySelectorAll(".js-plotly-plot");
addEventListener("beforeprint", () => {
  plots().forEach((plot) => Plotly.relayout(plot, { width: plot.closest(".pair") ? 420 : 880 }));
  document.querySelectorAll("details").forEach((each) => {
    each.dataset.was = each.open;
    each.open = true;
  });
  document.querySelectorAll(".main-svg").forEach((svg) => {
    svg.setAttribute("viewBox", `0 0 ${svg.getAttribute("width")} ${svg.getAttribute("height")}`);
  });
});
addEventListener("afterprint", () => {
  document.querySelectorAll("details").forEach((each) => {
    each.open = each.dataset.was === "true";
  });
  document.querySelectorAll(".main-svg").forEach((svg) => svg.removeAttribute("viewBox"));
  plots().forEach((plot) => Plotly.relayout(plot, { autosize: true, width: null }));
});

function reveal() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && "open" in target) {
    target.open = true;
    target.scrollIntoView();
  }
}
addEventListener("hashchange", reveal);
reveal();
draw();
