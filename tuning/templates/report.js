(function () {
  "use strict";
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var narrow = window.matchMedia("(max-width: 600px)");
  var names = Array.from(document.querySelectorAll(".plot"), function (e) { return e.id.slice(5); });
  var config = { responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "", modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };
  function folded(text) {
    return text.split(" ").reduce(function (lines, word) {
      var last = lines[lines.length - 1];
      if (last && (last + " " + word).length <= 44) { lines[lines.length - 1] = last + " " + word; } else { lines.push(word); }
      return lines;
    }, []).join("<br>");
  }
  function draw() {
    var style = getComputedStyle(document.documentElement);
    var ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim();
    var card = style.getPropertyValue("--card").trim();
    names.forEach(function (name) {
      var figure = JSON.parse(document.getElementById("data-" + name).textContent);
      var layout = figure.layout;
      layout.font = { family: getComputedStyle(document.body).fontFamily, size: narrow.matches ? 11 : 13, color: ink };
      layout.hoverlabel = { bgcolor: card, bordercolor: line, font: { color: ink } };
      Object.assign(layout.modebar, { bgcolor: "rgba(0,0,0,0)", color: line, activecolor: ink });
      Object.keys(layout).forEach(function (key) {
        if (!/^[xy]axis/.test(key)) { return; }
        layout[key].gridcolor = line;
        layout[key].linecolor = line;
        if (narrow.matches && key[0] === "x" && layout[key].title && layout[key].title.text) { layout[key].title.text = folded(layout[key].title.text); }
      });
      var small = layout.showlegend === false;
      if (narrow.matches && !small) {
        var lines = figure.data.filter(function (t) { return t.name && t.showlegend !== false; }).length;
        layout.height += 19 * lines;
        layout.margin = { l: 50, r: 12, t: 10, b: 50 };
      }
      Plotly.react("plot-" + name, figure.data, layout, Object.assign({ displayModeBar: narrow.matches || small ? false : "hover" }, config));
    });
  }
  draw();
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);
})();
