// Keeps the tables current. The page is complete without this file.
"use strict";

const PERIOD_MS = 1000;
const live = document.getElementById("live");
const news = document.getElementById("news");
let shown = "";

function scrolls() {
  return [...live.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
}

async function refresh() {
  try {
    const response = await fetch(live.dataset.source, { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!response.ok) throw new Error(`status ${response.status}`);
    const html = await response.text();
    if (news.textContent !== "") news.textContent = "";
    live.classList.remove("stale");
    // A link or table that has the focus, or text that is being selected, is not pulled away.
    if (html !== shown && !live.contains(document.activeElement) && getSelection().isCollapsed) {
      const lefts = scrolls();
      live.innerHTML = html;
      live.querySelectorAll(".scroll").forEach((box, index) => { box.scrollLeft = lefts[index] ?? 0; });
      shown = html;
    }
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
