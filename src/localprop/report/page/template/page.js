"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("drawn").textContent);
  const sliders = JSON.parse(document.getElementById("sliders").textContent);
  const root = document.documentElement;
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const chartOf = (element) => charts[Number(element.id.split("-")[1])];
  const sliderOf = (panel) => sliders[Number(panel.dataset.slider.split("-")[1])];

  // Colours: `$NAME` is the style sheet's --NAME, `$depth:0.4` a place on its scale, `/0.2` an opacity.
  const probe = document.body.appendChild(document.createElement("i"));
  probe.hidden = true;
  const channels = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
  };
  const onScale = (place) => {
    const at = place * 4;
    const below = Math.min(3, Math.floor(at));
    const [low, high] = [channels(`depth-${below + 1}`), channels(`depth-${below + 2}`)];
    return low.map((value, index) => Math.round(value + (at - below) * (high[index] - value)));
  };
  const color = (token) => {
    const [, name, place, opacity] = token.match(/^\$([a-z0-9-]+)(?::([\d.]+))?(?:\/([\d.]+))?$/);
    const rgb = place === undefined ? channels(name) : onScale(Number(place));
    return `rgba(${rgb.join(",")},${opacity ?? 1})`;
  };
  const painted = (value, key = "") => {
    if (Array.isArray(value)) return value.map((entry) => painted(entry, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, entry]) => [name, painted(entry, name)]));
    }
    return /color(scale)?$/.test(key) && typeof value === "string" && value[0] === "$" ? color(value) : value;
  };

  const themed = (layout, width) => {
    const [ink, muted, line, card] = ["ink", "muted", "line", "card"].map((name) => color(`$${name}`));
    const narrow = width < 520;
    const size = narrow ? 11 : 13;
    const below = { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0 };
    const axis = { gridcolor: line, zeroline: false, ticklabelstandoff: 4, automargin: true, fixedrange: true };
    const titled = (own) => ({ ...axis, ...painted(own), ...(own.title && { title: { ...own.title, standoff: 10, font: { size } } }) });
    return {
      ...layout,
      xaxis: titled(layout.xaxis),
      yaxis: titled(layout.yaxis),
      shapes: painted(layout.shapes ?? []),
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size, color: ink },
      hoverlabel: { bgcolor: card, bordercolor: muted, font: { color: ink } },
      hovermode: "closest",
      margin: { l: 8, r: 12, t: 12, b: 8 },
      ...(layout.showlegend && { legend: narrow ? below : { x: 1.02, y: 1 } }),
    };
  };

  const draw = (element) => {
    const { data, layout } = chartOf(element);
    element.dataset.drawn = "";
    const config = { displayModeBar: false, responsive: true };
    return Plotly.react(element, painted(data), themed(layout, element.clientWidth), config);
  };
  const redraw = () => document.querySelectorAll(".chart[data-drawn]").forEach(draw);

  // A chart is drawn when it comes near the view, so that one in a closed panel costs nothing and has a width.
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (isIntersecting && !("drawn" in target.dataset)) draw(target);
      }
    },
    { rootMargin: "600px" },
  );
  const elements = document.querySelectorAll(".chart");
  elements.forEach((element) => watcher.observe(element));
  addEventListener("beforeprint", () => elements.forEach((element) => element.offsetParent && draw(element)));

  const button = document.getElementById("scheme");
  const isDark = () => (root.style.colorScheme || (systemDark.matches ? "dark" : "light")) === "dark";
  const nameScheme = () => {
    button.textContent = isDark() ? "Light scheme" : "Dark scheme";
    redraw();
  };
  button.addEventListener("click", () => {
    root.style.colorScheme = isDark() ? "light" : "dark";
    nameScheme();
  });
  systemDark.addEventListener("change", nameScheme);
  button.hidden = false;
  nameScheme();

  for (const select of document.querySelectorAll("[data-chooser]")) {
    const panels = document.querySelectorAll(`[data-panel="${select.dataset.chooser}"]`);
    const choose = () => panels.forEach((panel, index) => (panel.hidden = index !== Number(select.value)));
    select.addEventListener("change", choose);
    choose();
  }

  const compare = (one, other, sign) => {
    if (one === "" || other === "") return (one === "") - (other === ""); // nothing to sort by comes last, either way
    const numbers = [Number(one), Number(other)];
    return sign * (numbers.some(Number.isNaN) ? one.localeCompare(other) : numbers[0] - numbers[1]);
  };
  for (const table of document.querySelectorAll(".sortable")) {
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, column) => {
      const press = header.firstElementChild;
      press.disabled = false;
      press.addEventListener("click", () => {
        const ascending = header.getAttribute("aria-sort") !== "ascending";
        headers.forEach((each) => each.removeAttribute("aria-sort"));
        header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        const body = table.tBodies[0];
        const key = (row) => row.cells[column].dataset.key;
        body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b), ascending ? 1 : -1)));
      });
    });
  }

  for (const panel of document.querySelectorAll("[data-slider]")) {
    const { stops } = sliderOf(panel);
    const input = panel.querySelector("input");
    const [tradeOff, leaving] = panel.querySelectorAll(".chart");
    input.addEventListener("input", () => {
      const stop = stops[Number(input.value)];
      input.setAttribute("aria-valuetext", stop.words);
      for (const tile of panel.querySelectorAll("[data-tile]")) {
        stop.tiles[tile.dataset.tile].forEach((text, index) => (tile.children[index + 1].textContent = text));
      }
      const mark = chartOf(tradeOff).data.at(-1);
      [[mark.x[0], mark.y[0]], chartOf(leaving).data[0].y] = [stop.place, stop.shares];
      for (const chart of [tradeOff, leaving]) if ("drawn" in chart.dataset) draw(chart);
    });
  }
})();
