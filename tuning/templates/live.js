(function () {
  "use strict";
  var place = "scroll " + location.pathname, said = document.getElementById("live");
  var before = sessionStorage.getItem(place);
  if (before !== null) { window.scrollTo(0, Number(before)); }
  function look() {
    fetch("state.json", { cache: "no-store" }).then(function (answer) { return answer.json(); }).then(function (state) {
      said.textContent = state.state === "running" ? "live" : state.state;
      if (state.stamp === shownStamp) { return; }
      sessionStorage.setItem(place, String(window.scrollY));
      location.reload();
    }).catch(function () { said.textContent = "the server has ended"; });
  }
  look();
  window.setInterval(look, 2000);
})();
