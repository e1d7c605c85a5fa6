// Keeps the tables current. The page is complete without this file.
"use strict";

const PERIOD_MS = 1000;
const live = document.getElementById("live");
const news = document.getElementById("news");
let shown = "";

// What a person has scrolled to or put the focus on stays where it is.
function replace(html) {
  const lefts = [...live.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
  const focused = [...live.querySelectorAll("a, .scroll")].indexOf(document.activeElement);
  live.innerHTML = html;
  live.querySelectorAll(".scroll").forEach((box, index) => { box.scrollLeft = lefts[index] ?? 0; });
  if (focused >= 0) live.querySelectorAll("a, .scroll")[focused]?.focus({ preventScroll: true });
  shown = html;
}

async function refresh() {
  try {
    const response = await fetch(live.dataset.source, { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!response.ok) throw new Error(`status ${response.status}`);
    const html = await response.text();
    if (news.textContent !== "") news.textContent = "";
    live.classList.remove("stale");
    // Text that is being selected is not pulled away.
    if (html !== shown && getSelection().isCollapsed) replace(html);
  } catch {
    if (news.textContent === "") news.textContent = "The controller does not answer; what stands here is old.";
    live.classList.add("stale");
  }
}

async function keepCurrent() {
  for (;;) {
    if (!document.hidden) await refresh();
    await new Promise((resolve) => setTimeout(resolve, PERIOD_MS));
  }
}

keepCurrent();
