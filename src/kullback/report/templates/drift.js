"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const text = document.getElementById("text"), tip = document.getElementById("tip");
const choice = document.getElementById("candidate");
const tokens = []; // [document, index within it, element]
let candidate = 0, shown = null;

function make(name, content, parent) {
  const one = document.createElement(name);
  if (content !== undefined) one.textContent = content;
  if (parent) parent.append(one);
  return one;
}

data.documents.forEach((doc) => {
  const box = make("div", undefined, text);
  box.className = "doc";
  make("h3", doc.n + (doc.b > 1 ? ", from token " + doc.b : ""), box);
  doc.t.forEach((piece, i) => {
    const one = make("span", piece, box);
    one.id = "t" + tokens.length;
    tokens.push([doc, i, one]);
  });
});

function colour(kl) { // none at 1e-4 nats, full at 1
  if (kl === null) return "rgba(213,94,0,.9)";
  const part = Math.min(1, Math.max(0, 1 + Math.log10(Math.max(kl, 1e-9)) / 4));
  return "rgba(213,94,0," + (0.9 * part).toFixed(2) + ")";
}

function paint() {
  tokens.forEach(([doc, i, one]) => { one.style.background = colour(doc.k[candidate][i]); });
  const order = tokens.map((_, n) => n).sort((a, b) =>
    (tokens[b][0].k[candidate][tokens[b][1]] ?? Infinity) - (tokens[a][0].k[candidate][tokens[a][1]] ?? Infinity));
  const worst = document.getElementById("worst");
  worst.replaceChildren(make("strong", "Moved most: "));
  order.slice(0, 12).forEach((n) => {
    const link = make("a", visible(tokens[n][2].textContent), worst);
    link.href = "#t" + n;
    worst.append("  ");
  });
}

function visible(piece) { return piece.replace(/\n/g, "⏎").trim() || "␣"; }
function percent(p) { return p === null ? "?" : p >= 0.001 ? (100 * p).toFixed(1) + " %" : p.toPrecision(2); }

function list(title, side, i, parent) {
  const box = make("div", undefined, parent);
  make("strong", title, box);
  const table = make("table", undefined, box);
  for (let k = 0; k < data.top; k++) {
    const at = 2 * (i * data.top + k);
    const row = make("tr", undefined, table);
    make("td", visible(data.words[side[at]]), row);
    make("td", (side[at + 1] / 10).toFixed(1) + " %", row);
  }
}

function showLists(n) {
  const [doc, i, one] = tokens[n];
  if (shown) shown.classList.remove("on");
  shown = one;
  one.classList.add("on");
  tip.replaceChildren();
  const kl = doc.k[candidate][i];
  make("div", "token " + (doc.b + i) + " of " + doc.n + (doc.r ? " (" + doc.r[i] + ")" : ""), tip);
  make("div", "KL(P‖Q) " + (kl === null ? "infinite" : kl.toPrecision(3)) + " nats", tip);
  make("div", "this token: P " + percent(doc.p[i]) + " → Q " + percent(doc.q[candidate][i]), tip);
  if (doc.a) {
    const half = make("div", undefined, tip);
    half.className = "half";
    list("P", doc.a[0], i, half);
    list("Q = " + data.names[candidate], doc.a[candidate + 1], i, half);
  }
  tip.hidden = false;
  const place = one.getBoundingClientRect(), size = tip.getBoundingClientRect();
  const below = place.bottom + 8 + size.height < innerHeight;
  const left = Math.max(8, Math.min(place.left, innerWidth - size.width - 8));
  const top = below ? place.bottom + 8 : Math.max(8, place.top - size.height - 8);
  tip.style.left = left + scrollX + "px";
  tip.style.top = top + scrollY + "px";
}

function hideLists() {
  tip.hidden = true;
  if (shown) shown.classList.remove("on");
  shown = null;
}

function follow() { // a link to a token opens its lists
  const n = +location.hash.slice(2);
  if (/^#t\d+$/.test(location.hash) && n < tokens.length) {
    tokens[n][2].scrollIntoView({ block: "center" });
    showLists(n);
  }
}

text.addEventListener("mouseover", (event) => {
  const one = event.target;
  if (/^t\d+$/.test(one.id)) showLists(+one.id.slice(1)); else hideLists();
});
text.addEventListener("mouseleave", hideLists);
addEventListener("hashchange", () => requestAnimationFrame(follow));
if (choice) choice.addEventListener("change", () => { candidate = +choice.value; hideLists(); paint(); });
paint();
follow();
